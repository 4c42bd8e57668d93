"""Asks frozen samples through lm-eval: the model is loaded already, nothing is scanned or fetched.

lm-eval's own command seeds global generators, scans 14,000 task files and may cut prompts on the
left; here its tasks are made from our samples and handed to its evaluator, one unit at a time.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from longred.errors import MismatchError, NonFiniteLossError
from longred.evaluation.prompts import encode
from longred.evaluation.ruler import METRICS
from longred.evaluation.units import Unit

# It warns of every model that is loaded already and of every data set made in process.
logging.getLogger("lm_eval").setLevel(logging.ERROR)
# A reminder that prompts exceed the window, which they do on purpose.
logging.getLogger("transformers.generation.stopping_criteria").setLevel(logging.ERROR)

# Longer prompts are not repeated beside every answer.
MAX_PROMPT_CHARACTERS = 2000
_NUMBER = re.compile(r"\d+")


class Examinee(HFLM):  # type: ignore[misc]
    """A loaded model as lm-eval sees it, without progress bars.

    Prompts are padded on the left for generation, where transformers counts positions from the
    first real token, and on the right for likelihoods, where padding comes after what is read.
    """

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **settings: Any,
    ) -> list[int]:
        """Return the tokens of a text as `prompts.encode` makes them."""
        tokens = encode(self.tokenizer, string)
        if add_special_tokens is False and self.tokenizer.bos_token_id is not None:
            tokens = tokens[1:]
        return tokens[-left_truncate_len:] if left_truncate_len else tokens

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and attention mask, both of shape [prompts, longest prompt]."""
        rows = [self.tok_encode(s, left_truncate_len=left_truncate_len) for s in strings]
        shape = len(rows), max(map(len, rows))
        tokens = torch.full(shape, int(self.tokenizer.pad_token_id))
        mask = torch.zeros(shape, dtype=torch.long)
        for number, row in enumerate(rows):
            place = slice(-len(row), None) if padding_side == "left" else slice(len(row))
            tokens[number, place] = torch.tensor(row)
            mask[number, place] = 1
        return tokens, mask

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Return log-likelihood and greediness of each request."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Return the text generated for each request."""
        return super().generate_until(requests, disable_tqdm=disable_tqdm)


def examinee(model: Any, tokenizer: Any, *, max_tokens: int, batch_size: int) -> Examinee:
    """Wrap a loaded model for lm-eval.

    Args:
        model: a causal language model whose attention takes padding (`sdpa`).
        tokenizer: its tokenizer; BOS is put before every prompt.
        max_tokens: the longest prompt with its answer, which may exceed the model's own window.
        batch_size: prompts at a time.
    """
    return Examinee(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        max_length=max_tokens,
        batch_size=batch_size,
    )


class _FrozenTask(ConfigurableTask):  # type: ignore[misc]
    """A unit's samples as a task of lm-eval."""

    def build_all_requests(self, **settings: Any) -> None:
        """Make the requests of all samples without the progress bar of the inherited method."""
        del settings
        self._instances = []
        for number, sample in self.doc_iterator():
            context = self.fewshot_context(
                sample, num_fewshot=0, gen_prefix=self.doc_to_prefix(sample)
            )
            metadata = (self.config.task, number, 1)
            made = self.construct_requests(doc=sample, ctx=context, metadata=metadata)
            self._instances.extend(made if isinstance(made, list) else [made])


def ask(lm: Examinee, unit: Unit) -> list[dict[str, Any]]:
    """Ask a model all samples of a unit.

    Args:
        lm: the model.
        unit: what is asked.

    Returns:
        In the order of the samples, dicts with `id`, `expected`, `got`, `score` (percent), and
        `prompt` where it is short, `depth` where there is one.

    Raises:
        MismatchError: a prompt would be cut.
    """
    samples = unit.read_samples()
    task = _FrozenTask(config=_task_config(unit, samples))
    task.build_all_requests()
    _check_requests(lm, task.instances)
    results = evaluate(lm, {unit.key: task}, bootstrap_iters=0, log_samples=True)
    logged = {row["doc_id"]: row for row in results["samples"][unit.key]}
    return [_answer(unit, sample, logged[number]) for number, sample in enumerate(samples)]


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
    if any(math.isnan(value) for value in likelihoods):
        raise NonFiniteLossError(
            "the likelihood of an answer is NaN; check the model's weights, or set "
            "evaluation.dtype to float32"
        )
    return likelihoods.index(max(likelihoods))


def _check_requests(lm: Examinee, instances: Sequence[Any]) -> None:
    """Refuse what would be cut on the left without a word."""
    for instance in instances:
        context, second = instance.args
        is_choice = isinstance(second, str)
        room = 0 if is_choice else second["max_gen_toks"]
        size = len(lm.tok_encode(context + second if is_choice else context)) + room
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
