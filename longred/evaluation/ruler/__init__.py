"""RULER: synthetic long-context tasks at exact lengths, generated once, scored by recall.

Tasks, parameters, wording (in its form for base models: the task, then how the answer begins) and
scores follow RULER (Hsieh et al., arXiv 2404.06654) as published in NVIDIA/RULER, Copyright (c)
2024 NVIDIA Corporation, Apache-2.0. The code is our own.

`tasks` is the table; `niah`, `tracking`, `extraction` and `qa` make samples, `fitting` fills them
to their length, `haystacks`, `words`, `texts` and `questions` are what they are made of.
"""

import difflib
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from longred.errors import ConfigError
from longred.evaluation.counting import token_counter
from longred.evaluation.ruler.fitting import FULL_LENGTH, run
from longred.evaluation.ruler.questions import OWN, Questions
from longred.evaluation.ruler.request import Parameters, Request, Revision
from longred.evaluation.ruler.scoring import METRICS, any_match, recall
from longred.evaluation.ruler.tasks import TASKS
from longred.evaluation.ruler.texts import library_text

__all__ = [
    "FULL_LENGTH",
    "GENERATOR_VERSION",
    "METRICS",
    "TASKS",
    "any_match",
    "check_task",
    "generate",
    "hides_in_text",
    "minimum_length",
    "recall",
    "resolve_parameters",
    "score",
]

GENERATOR_VERSION = 3
"""Part of every sample file's index: raise it when the same seed gives other samples."""

# Samples whose smallest prompts tell the minimum, and the least that another draw may take more.
_NUM_PROBES, _MIN_MARGIN = 32, 8
# Tokens of prompts that are made at the same time.
_BATCH_TOKENS = 2**20


def check_task(task: str) -> None:
    """Refuse a task that has no generator.

    Raises:
        ConfigError: the task is unknown.
    """
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        known = ", ".join(TASKS)
        raise ConfigError(f"evaluation.ruler.tasks: {task} is unknown{hint} (known: {known})")


def hides_in_text(task: str) -> bool:
    """Return whether a task needs a haystack of text."""
    return getattr(TASKS[task].full, "haystack", None) == "text"


def resolve_parameters(parameters: Literal["auto", "full", "compact"], length: int) -> Parameters:
    """Return the parameter set that `auto` stands for at a length."""
    if parameters == "auto":
        return "full" if length >= FULL_LENGTH else "compact"
    return parameters


def generate(
    task: str,
    *,
    length: int,
    num_samples: int,
    tokenizer: Any,
    seed: int,
    haystack: Sequence[str] | None = None,
    qa: Questions | None = None,
    revision: Revision = "current",
    parameters: Literal["auto", "full", "compact"] = "auto",
) -> list[dict[str, Any]]:
    """Return the samples of one task at one length.

    Sample i depends only on these arguments (but for `num_samples`) and on i: asking for another
    task or length changes nothing in it. Prompt, answer prefix and generation budget together
    take at most `length` tokens.

    Args:
        task: a name of `TASKS`.
        length: tokens of prompt and answer together, BOS included.
        num_samples: how many.
        tokenizer: the model's tokenizer.
        seed: any integer.
        haystack: documents for tasks that hide needles in text; Python's documentation if None.
        qa: questions for tasks that ask them; a small set of our own if None.
        revision: of RULER's wording: `paper` as of 2024, or `current`.
        parameters: RULER's own (`full`), `compact` ones for short windows, or by length (`auto`).

    Returns:
        Dicts with `id`, `input`, `prefix` (how the answer begins, behind a space), `outputs`
        (references), `length`, `parameters`, `num_tokens` (of the prompt), `max_new_tokens`,
        `num_units` (of haystack), where something is hidden `depths` (share of the haystack
        before each reference's place, 0 to 1), and where that is one place `depth`.

    Raises:
        ConfigError: the task is unknown, the length too short for it, or its haystack is empty.
        PreflightError: the tokenizer makes no tokens.
    """
    request = _request(
        task,
        length=length,
        tokenizer=tokenizer,
        haystack=haystack,
        qa=qa,
        revision=revision,
        parameters=resolve_parameters(parameters, length),
    )
    minimum = _minimum(request)
    if length < minimum:
        raise ConfigError(
            f"evaluation.ruler.lengths: {length} is too short for {task}, which needs at least "
            f"{minimum} tokens with this tokenizer ({request.parameters} parameters); "
            "ask for a longer length or leave the task out"
        )
    start = TASKS[task].prepare(request)
    samples: list[dict[str, Any]] = []
    step = max(1, _BATCH_TOKENS // length)
    for first in range(0, num_samples, step):
        indices = range(first, min(first + step, num_samples))
        started = [start(_random(seed, task, length, index), index) for index in indices]
        samples += run(started, request.count)
    return [_finish(sample, request, index) for index, sample in enumerate(samples)]


def minimum_length(
    task: str,
    tokenizer: Any,
    *,
    haystack: Sequence[str] | None = None,
    qa: Questions | None = None,
    revision: Revision = "current",
    parameters: Parameters = "full",
) -> int:
    """Return the shortest length at which a task is generated with a tokenizer.

    It holds the largest of 32 prompts without haystack, as much more as it exceeds the
    median, and the generation budget; for questions, whose own documents differ widely, the
    median prompt.

    Raises:
        ConfigError: the task is unknown, or its haystack is empty.
        PreflightError: the tokenizer makes no tokens.
    """
    request = _request(
        task,
        length=FULL_LENGTH,
        tokenizer=tokenizer,
        haystack=haystack,
        qa=qa,
        revision=revision,
        parameters=parameters,
    )
    return _minimum(request)


def score(task: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return a task's score in percent: the mean over samples of its metric.

    Raises:
        ConfigError: the task is unknown.
        ValueError: there are not as many predictions as lists of references, or none.
    """
    check_task(task)
    metric = METRICS[TASKS[task].metric]
    pairs = list(zip(predictions, references, strict=True))
    if not pairs:
        raise ValueError("a score needs at least one prediction")
    return sum(metric(prediction, wanted) for prediction, wanted in pairs) / len(pairs)


def _request(
    task: str,
    *,
    length: int,
    tokenizer: Any,
    haystack: Sequence[str] | None,
    qa: Questions | None,
    revision: Revision,
    parameters: Parameters,
) -> Request:
    check_task(task)
    settings = getattr(TASKS[task], parameters)
    documents = library_text() if haystack is None else haystack
    if hides_in_text(task) and not any(document.strip() for document in documents):
        raise ConfigError(
            f"evaluation.ruler.haystack: {task} hides its needles in text and there is none; "
            "give a text file or folder, or leave the task out"
        )
    return Request(
        task=task,
        length=length,
        parameters=parameters,
        revision=revision,
        settings=settings,
        count=token_counter(tokenizer),
        haystack=documents,
        questions=qa or OWN[TASKS[task].questions or "squad"](),
    )


def _minimum(request: Request) -> int:
    # The same whatever length is asked for.
    start = TASKS[request.task].prepare(replace(request, length=FULL_LENGTH))
    probes = [start(_random("minimum", request.task, index), index) for index in range(_NUM_PROBES)]
    sizes = sorted(request.count([next(steps) for steps in probes]))
    median, largest = sizes[len(sizes) // 2], sizes[-1]
    if TASKS[request.task].questions is not None:
        largest = median
    margin = max(_MIN_MARGIN, largest - median)
    return largest + margin + int(request.settings.budget)


def _random(*names: str | int) -> random.Random:
    return random.Random("-".join(map(str, names)))  # noqa: S311


def _finish(sample: dict[str, Any], request: Request, index: int) -> dict[str, Any]:
    depths = sample.pop("depths", None)
    if depths is not None:
        sample["depths"] = depths
    if depths is not None and len(depths) == 1:
        sample["depth"] = depths[0]
    return {
        "id": f"{request.task}-{request.length}-{index}",
        "length": request.length,
        "parameters": request.parameters,
        "max_new_tokens": request.settings.budget,
        **sample,
    }
