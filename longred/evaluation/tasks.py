"""Task: a named set of frozen samples with a metric; and the JSON Lines files that hold samples."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from longred.errors import MismatchError
from longred.store.artifacts import read_json, sha256_file, storage_errors

FORMAT_VERSION = 2

Row = dict[str, Any]

NAMES = ("name", "data_files")
"""Settings of a task of lm-eval that change no score: the content of its files counts
(`data_sha256`), their paths do not."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Frozen samples that are evaluated together: a short task, or a RULER task at one length.

    Attributes:
        kind: `short` or `ruler`.
        name: the task's name in score tables.
        part: for one member of an lm-eval group: the member's name.
        source: `local` for samples that longred generates, `lm-eval` for a task of lm-eval.
        capacity: the capacity that a short task belongs to; None for RULER.
        length: tokens of prompt and answer together; None for short tasks.
        metric: how an answer is scored: see `results.score`, or a metric of lm-eval.
        chance: score of guessing, in percent.
        num_samples: number of samples.
        max_tokens: tokens of the longest prompt with its answer.
        path: file of samples.
        sha256: hash of that file.
        settings: settings of the lm-eval task, see `lm_eval_catalog.leaf_settings`.
        fill: mean share of `length` that prompts and answers occupy.
        builtin: whether a RULER task asks the packaged question set.
    """

    kind: str
    name: str
    part: str | None = None
    source: str = "local"
    capacity: str | None = None
    length: int | None = None
    metric: str
    chance: float
    num_samples: int
    max_tokens: int
    path: Path
    sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    fill: float | None = None
    builtin: bool = False

    @property
    def table(self) -> str:
        """Name of the file with a model's answers; the members of a group share it."""
        return f"{self.kind}-{self.name}" + (f"-{self.length}" if self.length else "")

    @property
    def key(self) -> str:
        """Unique name within an evaluation."""
        return self.table if self.part is None else f"{self.table}-{self.part}"

    def identity(self) -> Row:
        """Return everything beside the samples that can change an answer or its score."""
        identity: Row = {"task": self.name, "length": self.length, "metric": self.metric}
        if self.source == "lm-eval":
            settings = {key: v for key, v in self.settings.items() if key not in NAMES}
            identity |= {"source": self.source, "part": self.part, "settings": settings}
        return identity

    def read_samples(self) -> list[Row]:
        """Read the samples.

        Raises:
            MismatchError: the file is missing or differs from what was frozen.
        """
        if not self.path.is_file() or sha256_file(self.path) != self.sha256:
            raise MismatchError(f"{self.path}: is missing or was changed; freeze the samples again")
        return read_lines(self.path)


def read_tasks(samples_folder: Path) -> list[Task]:
    """Return the tasks of a folder of frozen samples: short tasks, then RULER by length.

    Raises:
        MismatchError: the index is missing or has another format.
    """
    index = read_index(samples_folder)
    tasks = []
    for name, entry in index["short"].items():
        if "parts" in entry:
            for member, values in entry["parts"].items():
                part = None if member == entry["task"] else member
                tasks.append(_task(samples_folder, {**entry, **values}, "short", name, part=part))
        elif "unavailable" not in entry:
            tasks.append(_task(samples_folder, entry, "short", name))
    for name, lengths in index["ruler"].items():
        for length, entry in lengths.items():
            tasks.append(_task(samples_folder, entry, "ruler", name, length=int(length)))
    return sorted(tasks, key=lambda task: task.length or 0)


def _task(folder: Path, entry: Row, kind: str, name: str, **names: Any) -> Task:
    # The index stores most fields under their own names.
    values = {each.name: entry[each.name] for each in fields(Task) if each.name in entry}
    return Task(kind=kind, name=name, path=folder / entry["file"], **names, **values)


def read_index(samples_folder: Path) -> Row:
    """Read the index of a folder of frozen samples.

    Raises:
        MismatchError: the index is missing or has another format.
    """
    path = samples_folder / "index.json"
    index: Row = read_json(path)
    if index.get("format_version") != FORMAT_VERSION:
        raise MismatchError(
            f"{path}: format_version is {index.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; freeze the samples again"
        )
    return index


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON Lines with sorted keys: equal rows give equal bytes.

    Raises:
        StorageError: the disk is full or read-only.
    """
    text = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def read_lines(path: Path) -> list[Row]:
    """Read a JSON Lines file; raises as `iterate_lines`."""
    return list(iterate_lines(path))


def iterate_lines(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSON Lines file.

    Raises:
        MismatchError: the file is missing or a line is not a JSON object; names file and line.
    """
    if not path.is_file():
        raise MismatchError(f"{path}: is missing")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise MismatchError(f"{path}:{number}: is not valid JSON ({error})") from error
            if not isinstance(row, dict):
                raise MismatchError(f"{path}:{number}: is not a JSON object")
            yield row
