"""Runs a task whose samples longred generated or read, with prompts that fit exactly."""

from collections.abc import Sequence
from typing import Any

from longred.errors import MismatchError
from longred.evaluation.local_lm import LocalLM, Request
from longred.evaluation.prompts import messages, plain_prompt, stops
from longred.evaluation.results import likeliest, score
from longred.evaluation.tasks import Row, Task

MAX_PROMPT_CHARACTERS = 2000
"""Longer prompts are not saved beside the answers."""


def run_own_task(lm: LocalLM, task: Task, num_samples: int | None = None) -> list[Row]:
    """Evaluate a model on a local task.

    Args:
        lm: the model.
        task: the task.
        num_samples: evaluate the first ones only.

    Returns:
        One answer per sample, in order, with `id`, `expected`, `got`, `score` (percent), `prompt`
        if it is short, and `depth` and `group` if the sample has them; generated answers also have
        `ended` and `output_tokens`, and `unparsed` (true) if the metric cannot read them; choices
        have `loglikelihoods`.

    Raises:
        MismatchError: a prompt would be truncated.
        NonFiniteLossError: the model's logits are NaN.
    """
    samples = task.read_samples()[:num_samples]
    is_choice = task.metric == "choice"
    # A choice continues its text; only a question fits into a chat.
    in_chat = lm.is_chat and not is_choice
    requests = [
        Request(arguments, number)
        for number, sample in enumerate(samples)
        for arguments in (_choices(sample) if is_choice else [_question(lm, sample, in_chat)])
    ]
    lm.reset(task.max_tokens, in_chat=in_chat)
    sizes = _sizes(lm, requests)
    if in_chat:
        # `max_tokens` does not count the tokens of the template.
        lm.reset(max(sizes), in_chat=True)
    for request, size in zip(requests, sizes, strict=True):
        if size > lm.max_length:
            raise MismatchError(
                f"{task.key}: sample {request.doc_id} takes {size} tokens, more than the "
                f"{lm.max_length} that were frozen; freeze the samples again with this tokenizer"
            )
    results = lm.loglikelihood(requests) if is_choice else lm.generate_until(requests)
    responses: list[list[Any]] = [[] for _ in samples]
    for request, result in zip(requests, results, strict=True):
        responses[request.doc_id].append(result)
    answers = [
        _answer(task, sample, found, in_chat)
        for sample, found in zip(samples, responses, strict=True)
    ]
    for request in requests:
        answers[request.doc_id].update(lm.endings.get(request.args[0], {}))
    return answers


def _sizes(lm: LocalLM, requests: Sequence[Request]) -> list[int]:
    """Count the tokens of each prompt with its continuation or longest answer."""
    pairs = [request.args for request in requests]
    texts = [prompt + rest if isinstance(rest, str) else prompt for prompt, rest in pairs]
    budgets = [0 if isinstance(rest, str) else int(rest["max_gen_toks"]) for _, rest in pairs]
    return [
        len(tokens) + budget for tokens, budget in zip(lm.encode_all(texts), budgets, strict=True)
    ]


def _choices(sample: Row) -> list[tuple[str, str]]:
    return [(sample["input"], choice) for choice in sample["choices"]]


def _question(lm: LocalLM, sample: Row, in_chat: bool) -> tuple[str, Row]:
    """Return the prompt of a sample, and the settings that generate its answer."""
    if in_chat:
        turns = messages(sample)
        is_begun = turns[-1]["role"] == "assistant"
        prompt = lm.apply_chat_template(turns, add_generation_prompt=not is_begun)
    else:
        prompt = plain_prompt(sample)
    until, budget = stops(sample, in_chat=in_chat), sample["max_new_tokens"]
    return prompt, {"until": until, "do_sample": False, "max_gen_toks": budget}


def _answer(task: Task, sample: Row, responses: list[Any], in_chat: bool) -> Row:
    answer: Row = {"id": sample["id"]}
    scored = responses
    if task.metric == "choice":
        answer["expected"] = sample["choices"][sample["answer"]]
        answer["got"] = sample["choices"][likeliest(responses)]
        answer["loglikelihoods"] = [round(float(r[0]), 6) for r in responses]
        prompt = sample["input"]
    else:
        answer["expected"], answer["got"] = sample["outputs"], responses[0]
        prompt = plain_prompt(sample)
        if not in_chat:
            # The words that open the answer are part of what is scored.
            scored = [sample.get("suffix", "").lstrip() + responses[0]]
    percent, is_parsed = score(task.metric, sample, scored)
    answer["score"] = percent
    if not is_parsed:
        answer["unparsed"] = True
    for name in ("depth", "group"):
        if name in sample:
            answer[name] = sample[name]
    if len(prompt) <= MAX_PROMPT_CHARACTERS:
        answer["prompt"] = prompt
    return answer
