"""Asks frozen samples through lm-eval: the model is loaded already, nothing is scanned or fetched.

lm-eval's own command seeds global generators, scans 14,000 task files and may cut prompts on the
left; here its tasks are made from our samples and handed to its evaluator, one unit at a time.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate

from longred.errors import MismatchError
from longred.evaluation.examinee import Examinee
from longred.evaluation.ruler.tasks import METRICS
from longred.evaluation.units import Unit

# Longer prompts are not repeated beside every answer.
MAX_PROMPT_CHARACTERS = 2000
_NUMBER = re.compile(r"\d+")


class FrozenTask(ConfigurableTask):  # type: ignore[misc]
    """A unit's samples as a task of lm-eval."""

    def build_all_requests(
        self,
        *,
        apply_chat_template: bool = False,
        chat_template: Any = None,
        **settings: Any,
    ) -> None:
        """Make the requests of all samples without the progress bar of the inherited method."""
        del settings
        chat = {"apply_chat_template": apply_chat_template, "chat_template": chat_template}
        self._instances = []
        for number, sample in self.doc_iterator():
            context = self.fewshot_context(
                sample, num_fewshot=0, gen_prefix=self.doc_to_prefix(sample), **chat
            )
            metadata = (self.config.task, number, 1)
            made = self.construct_requests(doc=sample, ctx=context, metadata=metadata, **chat)
            self._instances.extend(made if isinstance(made, list) else [made])


def frozen_task(unit: Unit, samples: Sequence[Mapping[str, Any]]) -> FrozenTask:
    """Return a unit's samples as a task of lm-eval."""
    return FrozenTask(config=_task_config(unit, samples))


def ask(lm: Examinee, unit: Unit) -> list[dict[str, Any]]:
    """Ask a model all samples of a unit.

    Args:
        lm: the model.
        unit: what is asked.

    Returns:
        In the order of the samples, dicts with `id`, `expected`, `got`, `score` (percent), and
        `prompt` where it is short, `depth` where there is one; generated answers also with
        `ended` and `output_tokens`.

    Raises:
        MismatchError: a prompt would be cut.
        NonFiniteLossError: the model's logits are NaN.
    """
    samples = unit.read_samples()
    task = frozen_task(unit, samples)
    # A choice continues its text; a question can be asked in a chat.
    chat = lm.is_chat and unit.metric != "choice"
    template = lm.apply_chat_template if chat else None
    task.build_all_requests(apply_chat_template=chat, chat_template=template)
    lm.limit(unit.max_tokens, in_chat=chat)
    if chat:
        # Prompts fit exactly; what the template adds comes on top.
        sizes = [_num_tokens(lm, instance) for instance in task.instances]
        lm.limit(max(sizes), in_chat=True)
    _check_requests(lm, task.instances)
    results = evaluate(
        lm, {unit.key: task}, bootstrap_iters=0, log_samples=True, apply_chat_template=chat
    )
    logged = {row["doc_id"]: row for row in results["samples"][unit.key]}
    prompts = {instance.doc_id: instance.args[0] for instance in task.instances}
    return [
        _answer(unit, sample, logged[number]) | _ending(lm, prompts[number])
        for number, sample in enumerate(samples)
    ]


def _task_config(unit: Unit, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = [{key: value for key, value in s.items() if key in _COLUMNS} for s in samples]
    common = {
        "task": unit.key,
        "custom_dataset": lambda: {"test": datasets.Dataset.from_list(columns)},
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "input",
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
        "process_results": lambda sample, results: {"score": score(unit.metric, sample, results)},
    }
    if unit.metric == "choice":
        return {
            **common,
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "target_delimiter": "",
        }
    # RULER's full budget is generated to its end, as its own evaluation does.
    stops = [] if samples[0].get("parameters") == "full" else ["\n"]
    return {
        **common,
        "output_type": "generate_until",
        "doc_to_target": "outputs",
        "gen_prefix": "prefix" if "prefix" in columns[0] else None,
        "generation_kwargs": {
            "until": stops,
            "do_sample": False,
            "max_gen_toks": samples[0]["max_new_tokens"],
        },
    }


_COLUMNS = ("input", "prefix", "choices", "answer", "outputs")


def score(metric: str, sample: Mapping[str, Any], results: Sequence[Any]) -> float:
    """Return the score of one sample, in percent.

    Args:
        metric: `choice`, `exact_match`, `recall` or `any_match`.
        sample: the frozen sample.
        results: (log-likelihood, greediness) of each choice, or the generated text alone.
    """
    if metric == "choice":
        return 100.0 if _likeliest(results) == sample["answer"] else 0.0
    if metric == "exact_match":
        return 100.0 if first_number(results[0]) == sample["outputs"][0] else 0.0
    return METRICS[metric](results[0], sample["outputs"])


def first_number(text: str) -> str | None:
    """Return the first run of digits in a text."""
    found = _NUMBER.search(text)
    return found[0] if found else None


def _likeliest(results: Sequence[Any]) -> int:
    likelihoods = [float(result[0]) for result in results]
    return likelihoods.index(max(likelihoods))


def _num_tokens(lm: Examinee, instance: Any) -> int:
    context, second = instance.args
    if isinstance(second, str):
        return len(lm.tok_encode(context + second))
    return len(lm.tok_encode(context)) + int(second["max_gen_toks"])


def _check_requests(lm: Examinee, instances: Sequence[Any]) -> None:
    """Refuse what would be cut on the left without a word."""
    for instance in instances:
        size = _num_tokens(lm, instance)
        if size > lm.max_length:
            raise MismatchError(
                f"{instance.task_name}: sample {instance.doc_id} takes {size} tokens "
                f"and {lm.max_length} were announced; freeze the samples again with this tokenizer"
            )


def _answer(unit: Unit, sample: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"id": sample["id"], "score": row["score"]}
    if unit.metric == "choice":
        likeliest = _likeliest(row["filtered_resps"])
        answer["expected"] = sample["choices"][sample["answer"]]
        answer["got"] = sample["choices"][likeliest]
        answer["loglikelihoods"] = [round(float(r[0]), 6) for r in row["filtered_resps"]]
    else:
        answer["expected"] = sample["outputs"]
        answer["got"] = row["filtered_resps"][0]
    if "depth" in sample:
        answer["depth"] = sample["depth"]
    if len(sample["input"]) <= MAX_PROMPT_CHARACTERS:
        prefix = sample.get("prefix")
        answer["prompt"] = f"{sample['input']} {prefix}" if prefix else sample["input"]
    return answer


def _ending(lm: Examinee, prompt: str) -> dict[str, Any]:
    ending = lm.endings.get(prompt)
    return {"ended": ending.reason, "output_tokens": ending.num_tokens} if ending else {}
