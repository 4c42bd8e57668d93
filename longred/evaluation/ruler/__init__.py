"""RULER: synthetic long-context tasks at exact lengths, generated once, scored by recall."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from longred.errors import ConfigError
from longred.evaluation.ruler import niah
from longred.evaluation.ruler.fitting import generation_budget

TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "niah_single_1": niah.single_noise,
    "niah_single_2": niah.single_text,
}
"""Task name → generator of one sample."""

GENERATOR_VERSION = 1
"""Part of every sample file's index: raise it when the same seed gives other samples."""


def check_task(task: str) -> None:
    """Refuse a task that has no generator.

    Raises:
        ConfigError: the task is unknown.
    """
    if task not in TASKS:
        known = ", ".join(TASKS)
        raise ConfigError(f"evaluation.ruler.tasks: {task} is unknown; known tasks: {known}")


def generate(
    task: str,
    *,
    length: int,
    num_samples: int,
    tokenizer: Any,
    seed: int,
    haystack: Sequence[str] | None = None,
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
        haystack: documents for tasks that hide needles in text.

    Returns:
        Dicts with `id`, `input`, `prefix` (how the answer begins), `outputs` (references),
        `length`, `num_tokens` (of the prompt), `max_new_tokens`, `num_units` (of haystack) and
        `depth` (share of the haystack before the needle, 0 to 1).

    Raises:
        ConfigError: the task is unknown, the length too short for it, or its haystack is missing.
    """
    check_task(task)
    samples = []
    for index in range(num_samples):
        rng = random.Random(f"{seed}-{task}-{length}-{index}")  # noqa: S311
        sample = TASKS[task](rng, length=length, tokenizer=tokenizer, documents=haystack)
        samples.append(
            {
                "id": f"{task}-{length}-{index}",
                "length": length,
                "max_new_tokens": generation_budget(length)[1],
                **sample,
            }
        )
    return samples


def recall(prediction: str, references: Sequence[str]) -> float:
    """Return the share of references that occur in a prediction, ignoring case, in percent."""
    found = sum(reference.lower() in prediction.lower() for reference in references)
    return 100.0 * found / len(references)


def score(task: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return a task's score in percent: the mean recall of all references.

    Source: RULER's `string_match_all`.

    Raises:
        ConfigError: the task is unknown.
        ValueError: there are not as many predictions as lists of references, or none.
    """
    check_task(task)
    pairs = list(zip(predictions, references, strict=True))
    if not pairs:
        raise ValueError("a score needs at least one prediction")
    return sum(recall(prediction, wanted) for prediction, wanted in pairs) / len(pairs)
