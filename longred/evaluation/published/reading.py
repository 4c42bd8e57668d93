"""What a reader of a benchmark gets: its files, its settings and the tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from longred.evaluation.published.files import Table


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One task of a published benchmark.

    Attributes:
        name: the task, for messages.
        files: split -> local file; `test`, `test_2` … are one table.
        tokenizer: a fast tokenizer.
        seed: chooses samples and characters where the benchmark itself fixes no seed.
        limit: most samples, or questions where one question makes several samples.
        shots: examples before each question.
        settings: values of the benchmark's settings.
    """

    name: str
    files: Mapping[str, Path]
    tokenizer: Any
    seed: int
    limit: int | None = None
    shots: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def test(self) -> Table:
        """The rows that are asked."""
        return self.table("test")

    def table(self, split: str) -> Table:
        """Return the rows of a split, from all of its files."""
        return Table(self.name, self.paths(split))

    def paths(self, split: str) -> list[Path]:
        """Return the files of a split, by name."""
        return [path for name, path in sorted(self.files.items()) if split_of(name) == split]


def split_of(name: str) -> str:
    """Return the split that a key of `data_files` belongs to: `test_2` is part of `test`."""
    stem, _, number = name.rpartition("_")
    return stem if number.isdecimal() and stem else name


def shuffled(count: int, seed: int) -> list[int]:
    """Return row numbers in the order of `datasets.Dataset.shuffle` with a seed."""
    return [int(number) for number in np.random.default_rng(seed).permutation(count)]


def first_of_each(numbers: Sequence[int], keys: Mapping[int, Any], count: int) -> list[int]:
    """Return the first row numbers whose keys differ, at most `count`."""
    found: dict[Any, int] = {}
    for number in numbers:
        if len(found) == count:
            break
        found.setdefault(keys[number], number)
    return list(found.values())
