"""Short tasks from held-out text, whose samples fit the original window.

`make` creates the samples of a task: multiple-choice tasks cut from the documents (`choices`,
`passages`), or key recall with keys that no training saw (`key_recall`, which also provides keys
and wordings to the demo model's exercises).
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from longred.errors import ConfigError
from longred.evaluation.short.choices import brackets, cloze, continuation
from longred.evaluation.short.key_recall import key_recall
from longred.evaluation.short.passages import Passages

TASKS: dict[str, Callable[[Passages, int], Iterator[dict[str, Any]]]] = {
    "cloze": cloze,
    "continuation": continuation,
    "brackets": brackets,
    "key_recall": key_recall,
}
"""Name → generator of samples; the first n do not depend on how many are taken."""

METRICS = {
    "cloze": "choice",
    "continuation": "choice",
    "brackets": "choice",
    "key_recall": "exact_match",
}
"""Name → the metric that its samples have the form for."""

GENERATOR_VERSION = 1
"""Part of the index of every sample file; increase it when a seed gives other samples."""


def make(task: str, passages: Passages, num_samples: int, seed: int) -> list[dict[str, Any]]:
    """Create the samples of one task.

    Args:
        task: a name of `TASKS`.
        passages: the held-out documents.
        num_samples: number of samples; a larger number does not change the first ones.
        seed: any integer.

    Returns:
        Dicts with `id`, `source`, `input` and either `choices` and `answer` (an index of `choices`)
        or `outputs` (references) and `max_new_tokens`.

    Raises:
        ConfigError: the documents do not yield that many samples.
    """
    samples = [
        {"id": f"{task}-{index}", **sample}
        for index, sample in enumerate(islice(TASKS[task](passages, seed), num_samples))
    ]
    if len(samples) < num_samples:
        raise ConfigError(
            f"evaluation.short.num_samples: needs {num_samples} samples of {task}, but the "
            f"held-out documents yield {len(samples)} in {passages.window} tokens; hold out more "
            "text (data.num_held_out_tokens), allow more tokens (evaluation.short_window) or use "
            "fewer samples"
        )
    return samples
