"""RULER: synthetic long-context tasks of exact lengths, generated once and scored by recall.

Tasks, parameters, wording (the form for base models: the task, then the start of the answer) and
scores follow RULER (Hsieh et al., arXiv 2404.06654) as published in NVIDIA/RULER, Copyright (c)
2024 NVIDIA Corporation, Apache-2.0. The code is our own.

`generate` looks a task up in the table of `tasks`. The samples come
from `retrieval` (niah), `tracking` (vt), `extraction` (cwe, fwe), `qa` and `pairs` (kv_retrieval).
All of them use `fitting` to fill prompts to their length, and take their content from `haystacks`,
`words` and `materials` (the user's or built-in texts and questions, read by `questions` and
`rows`). `freeze` calls `generate` for a configuration and describes the result.
"""

import difflib
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from longred.errors import ConfigError
from longred.evaluation.counting import token_counter
from longred.evaluation.metrics.ruler import METRICS
from longred.evaluation.ruler.fitting import FULL_LENGTH, Parameters, Revision, SampleSpec, run
from longred.evaluation.ruler.materials import library_text
from longred.evaluation.ruler.questions import Questions, own_questions
from longred.evaluation.ruler.tasks import FIRST_VERSION, TASKS

# Smallest prompts that are measured to find the minimum length, and the least margin in tokens.
_NUM_PROBES, _MIN_MARGIN = 32, 8
# Tokens of the prompts that are filled at the same time.
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


def generator_version(tasks: Iterable[str]) -> int:
    """Return a number that changes when the samples of any of these tasks do.

    Unknown tasks, which have no samples, are left out.
    """
    versions = (TASKS[task].version for task in tasks if task in TASKS)
    return max(versions, default=FIRST_VERSION)


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
    settings: Any = None,
) -> list[dict[str, Any]]:
    """Generate the samples of one task at one length.

    Sample i depends only on i and on these arguments, except `num_samples`: generating further
    tasks or lengths does not change it. Prompt, answer prefix and generation budget together take
    at most `length` tokens.

    Args:
        task: a name of `TASKS`.
        length: tokens of prompt and answer together, BOS included.
        num_samples: number of samples.
        tokenizer: the model's tokenizer.
        seed: any integer.
        haystack: documents for tasks that hide needles in text, and for question answering when
            the documents of the questions are used up; Python's documentation if None.
        qa: questions for question answering tasks; the small built-in set if None.
        revision: revision of RULER's wording: `paper` as of 2024, or `current`.
        parameters: RULER's own (`full`), `compact` ones for short windows, or by length (`auto`).
        settings: the task's settings; those of its parameters if None.

    Returns:
        Dicts with `id`, `input`, `prefix` (start of the answer, which follows a space unless the
        input ends a line), `outputs` (references), `length`, `parameters`, `num_tokens` (of the
        prompt), `max_new_tokens`, `num_units` (of haystack), `depths` if references are hidden
        (share of the haystack before each, 0 to 1), and `depth` if there is only one; question
        answering adds some (`qa.prepare`).

    Raises:
        ConfigError: the task is unknown, the length too short for it, or its haystack is empty.
        PreflightError: the tokenizer produces no tokens.
    """
    check_task(task)
    documents = library_text() if haystack is None else haystack
    if hides_in_text(task) and not any(document.strip() for document in documents):
        raise ConfigError(
            f"evaluation.ruler.haystack: {task} hides its needles in text, but the text is empty; "
            "give a text file or folder, or leave the task out"
        )
    resolved = resolve_parameters(parameters, length)
    spec = SampleSpec(
        task=task,
        length=length,
        parameters=resolved,
        revision=revision,
        settings=settings or getattr(TASKS[task], resolved),
        count=token_counter(tokenizer),
        haystack=documents,
        questions=qa or own_questions(TASKS[task].questions or "squad"),
    )
    minimum = minimum_length(spec)
    if length < minimum:
        raise ConfigError(
            f"evaluation.ruler.lengths: {length} is too short for {task}, which needs at least "
            f"{minimum} tokens with this tokenizer ({spec.parameters} parameters); "
            "use a longer length or leave the task out"
        )
    start = TASKS[task].prepare(spec)
    samples: list[dict[str, Any]] = []
    batch_size = max(1, _BATCH_TOKENS // length)
    for first in range(0, num_samples, batch_size):
        indices = range(first, min(first + batch_size, num_samples))
        started = [start(_random(seed, task, length, index), index) for index in indices]
        samples += run(started, spec.count)
    return [
        {
            "id": f"{task}-{length}-{index}",
            "length": length,
            "parameters": spec.parameters,
            "max_new_tokens": spec.settings.budget,
            **sample,
        }
        for index, sample in enumerate(samples)
    ]


def minimum_length(spec: SampleSpec) -> int:
    """Return the shortest length at which a task is generated; does not depend on `spec.length`.

    It holds the largest of 32 prompts without haystack, a margin of as many tokens as that exceeds
    the median by, and the generation budget. For questions, whose documents vary widely in size,
    the median replaces the largest prompt.
    """
    start = TASKS[spec.task].prepare(replace(spec, length=FULL_LENGTH))
    probes = [start(_random("minimum", spec.task, index), index) for index in range(_NUM_PROBES)]
    sizes = sorted(spec.count([next(steps) for steps in probes]))
    median, largest = sizes[len(sizes) // 2], sizes[-1]
    if TASKS[spec.task].questions is not None:
        largest = median
    margin = max(_MIN_MARGIN, largest - median)
    return largest + margin + int(spec.settings.budget)


def _random(*names: str | int) -> random.Random:
    return random.Random("-".join(map(str, names)))  # noqa: S311


def score(task: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the score of a task in percent: the mean of its metric over all samples.

    Raises:
        ConfigError: the task is unknown.
        ValueError: the numbers of predictions and lists of references differ, or are 0.
    """
    check_task(task)
    metric = METRICS[TASKS[task].metric]
    pairs = list(zip(predictions, references, strict=True))
    if not pairs:
        raise ValueError("a score needs at least one prediction")
    return sum(metric(prediction, wanted) for prediction, wanted in pairs) / len(pairs)
