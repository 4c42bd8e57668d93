"""Runs a local task (samples that longred generated) through lm-eval's evaluator.

lm-eval's own command seeds global generators, scans 14,000 task files and may truncate prompts on
the left; here each of our tasks becomes one lm-eval task in memory, on a model that is loaded.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate

from longred.errors import MismatchError
from longred.evaluation.lm import TransformersLM, request_tokens
from longred.evaluation.results import likeliest, score
from longred.evaluation.tasks import Row, Task

MAX_PROMPT_CHARACTERS = 2000
"""Longer prompts are not saved beside the answers."""
_COLUMNS = ("input", "prefix", "choices", "answer", "outputs")


def run_own_task(lm: TransformersLM, task: Task, num_samples: int | None = None) -> list[Row]:
    """Evaluate a model on a local task.

    Args:
        lm: the model.
        task: the task.
        num_samples: evaluate the first ones only.

    Returns:
        One answer per sample, in order, with `id`, `expected`, `got`, `score` (percent), `prompt`
        if it is short, and `depth` if the sample has one; generated answers also have `ended` and
        `output_tokens`, choices `loglikelihoods`.

    Raises:
        MismatchError: a prompt would be truncated.
        NonFiniteLossError: the model's logits are NaN.
    """
    samples = task.read_samples()[:num_samples]
    lm_eval_task = ConfigurableTask(config=_task_config(task, samples))
    # A choice continues its text; only a question fits into a chat.
    chat = lm.is_chat and task.metric != "choice"
    template = lm.apply_chat_template if chat else None
    lm_eval_task.build_all_requests(apply_chat_template=chat, chat_template=template)
    lm.reset(task.max_tokens, in_chat=chat)
    requests = lm_eval_task.instances
    sizes = [request_tokens(request.args, lm.tok_encode) for request in requests]
    if chat:
        # `max_tokens` does not count the tokens of the template.
        lm.reset(max(sizes), in_chat=True)
    for request, size in zip(requests, sizes, strict=True):
        if size > lm.max_length:
            raise MismatchError(
                f"{task.key}: sample {request.doc_id} takes {size} tokens, more than the "
                f"{lm.max_length} that were frozen; freeze the samples again with this tokenizer"
            )
    logged = evaluate(
        lm, {task.key: lm_eval_task}, bootstrap_iters=0, log_samples=True, apply_chat_template=chat
    )["samples"][task.key]
    rows = {row["doc_id"]: row for row in logged}
    return [_answer(lm, task, sample, rows[number]) for number, sample in enumerate(samples)]


def _task_config(task: Task, samples: Sequence[Row]) -> Row:
    rows = [{key: value for key, value in s.items() if key in _COLUMNS} for s in samples]
    common = {
        "task": task.key,
        "custom_dataset": lambda: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "input",
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
        "process_results": lambda sample, results: {"score": score(task.metric, sample, results)},
    }
    if task.metric == "choice":
        return {
            **common,
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "target_delimiter": "",
        }
    # With full parameters RULER generates the whole budget, as its own evaluation does.
    stops = [] if samples[0].get("parameters") == "full" else ["\n"]
    return {
        **common,
        "output_type": "generate_until",
        "doc_to_target": "outputs",
        "gen_prefix": "prefix" if "prefix" in rows[0] else None,
        "generation_kwargs": {
            "until": stops,
            "do_sample": False,
            "max_gen_toks": samples[0]["max_new_tokens"],
        },
    }


def _answer(lm: TransformersLM, task: Task, sample: Row, logged: Mapping[str, Any]) -> Row:
    responses = logged["filtered_resps"]
    answer: Row = {"id": sample["id"], "score": logged["score"]}
    if task.metric == "choice":
        answer["expected"] = sample["choices"][sample["answer"]]
        answer["got"] = sample["choices"][likeliest(responses)]
        answer["loglikelihoods"] = [round(float(r[0]), 6) for r in responses]
    else:
        answer["expected"] = sample["outputs"]
        answer["got"] = responses[0]
    if "depth" in sample:
        answer["depth"] = sample["depth"]
    if len(sample["input"]) <= MAX_PROMPT_CHARACTERS:
        prefix = sample.get("prefix")
        answer["prompt"] = f"{sample['input']} {prefix}" if prefix else sample["input"]
    return answer | lm.endings.get(logged["arguments"][0][0], {})
