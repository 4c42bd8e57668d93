"""Short tasks made from held-out text: everything a sample needs fits the original window."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from longred.errors import ConfigError
from longred.evaluation.short.brackets import brackets
from longred.evaluation.short.cloze import cloze
from longred.evaluation.short.continuation import continuation
from longred.evaluation.short.key_recall import key_recall
from longred.evaluation.short.passages import Passages

TASKS: dict[str, Callable[[Passages, int], Iterator[dict[str, Any]]]] = {
    "cloze": cloze,
    "continuation": continuation,
    "brackets": brackets,
    "key_recall": key_recall,
}
"""Task name → generator of samples; the first n do not depend on how many are taken."""

GENERATOR_VERSION = 1
"""Part of every sample file's index: raise it when the same seed gives other samples."""


def generate(
    task: str,
    *,
    num_samples: int,
    documents: Sequence[tuple[str, str]],
    tokenizer: Any,
    window: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the samples of one short task.

    Args:
        task: a name of `TASKS`.
        num_samples: how many; asking for more keeps the first ones as they are.
        documents: path and text of held-out documents.
        tokenizer: the model's tokenizer.
        window: tokens that context and answer may take together, BOS included.
        seed: any integer.

    Returns:
        Dicts with `id`, `source`, `input` and either `choices` and `answer` (a number of `choices`)
        or `outputs` (references) and `max_new_tokens`.

    Raises:
        ConfigError: the documents do not yield that many samples.
    """
    return make(task, Passages(documents, tokenizer, window=window), num_samples, seed)


def make(task: str, passages: Passages, num_samples: int, seed: int) -> list[dict[str, Any]]:
    """Return the samples of one task from documents that are tokenized already; see `generate`."""
    samples = [
        {"id": f"{task}-{index}", **sample}
        for index, sample in enumerate(islice(TASKS[task](passages, seed), num_samples))
    ]
    if len(samples) < num_samples:
        raise ConfigError(
            f"evaluation.short.num_samples: {num_samples} samples of {task} are asked for and the "
            f"held-out documents yield {len(samples)}; hold out more text "
            f"(data.num_held_out_tokens) or ask for fewer"
        )
    return samples
