"""What is asked of a model in one go: a short task or a part of it, or a task at one length."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longred.errors import MismatchError
from longred.store.artifacts import read_json, sha256_file, storage_errors

FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Frozen samples that are asked together, and how their answers are scored.

    Attributes:
        kind: `short` or `ruler`.
        task: the task's name in tables.
        part: the task of a group of lm-eval that this is; None where a task is one unit.
        source: `local` for our own samples, `lm-eval` for a task of the harness.
        capacity: what a short task stands for; None for the others.
        length: tokens of prompt and answer together; None for short tasks.
        metric: how an answer is scored, see `benchmarks.score`, or a metric of the harness.
        chance: percent that guessing scores.
        num_samples: how many.
        max_tokens: tokens of the longest prompt with its answer.
        path: file of samples.
        sha256: hash of that file.
        settings: what the harness is told, for tasks of lm-eval.
        fill: mean share of the length that prompts and their answers take.
    """

    kind: str
    task: str
    part: str | None = None
    source: str = "local"
    capacity: str | None
    length: int | None
    metric: str
    chance: float
    num_samples: int
    max_tokens: int
    path: Path
    sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    fill: float | None = None

    @property
    def table(self) -> str:
        """The name of the file that holds a model's answers to the whole task."""
        return f"{self.kind}-{self.task}" + (f"-{self.length}" if self.length else "")

    @property
    def key(self) -> str:
        """The unit's own name."""
        return self.table if self.part is None else f"{self.table}-{self.part}"

    def identity(self) -> dict[str, Any]:
        """Return what of the unit decides an answer or its score, beside the samples' bytes."""
        found: dict[str, Any] = {"task": self.task, "length": self.length, "metric": self.metric}
        if self.source == "lm-eval":
            # Where a data file lies is no difference; its bytes are.
            settings = {key: v for key, v in self.settings.items() if key != "data_files"}
            found |= {"source": self.source, "part": self.part, "settings": settings}
        return found

    def read_samples(self) -> list[dict[str, Any]]:
        """Return the samples.

        Raises:
            MismatchError: the file is not the one that was frozen.
        """
        if not self.path.is_file() or sha256_file(self.path) != self.sha256:
            raise MismatchError(f"{self.path}: is missing or was changed; freeze the samples again")
        return read_lines(self.path)


def read_units(samples_folder: Path) -> list[Unit]:
    """Return the units of a folder of frozen samples, short tasks first, then by length.

    Raises:
        MismatchError: the folder has no index, or one of another format.
    """
    index = read_index(samples_folder)
    units = []
    for task, entry in index["short"].items():
        if "parts" in entry:
            for part, found in entry["parts"].items():
                name = None if part == entry["task"] else part
                units.append(_unit(samples_folder, "short", task, None, {**entry, **found}, name))
        elif "unavailable" not in entry:
            units.append(_unit(samples_folder, "short", task, None, entry))
    for task, lengths in index["ruler"].items():
        for length, entry in lengths.items():
            units.append(_unit(samples_folder, "ruler", task, int(length), entry))
    return sorted(units, key=lambda unit: unit.length or 0)


def read_index(samples_folder: Path) -> dict[str, Any]:
    """Return the index of a folder of frozen samples.

    Raises:
        MismatchError: there is none, or it has another format.
    """
    path = samples_folder / "index.json"
    index: dict[str, Any] = read_json(path)
    if index.get("format_version") != FORMAT_VERSION:
        raise MismatchError(
            f"{path}: format_version is {index.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; freeze the samples again"
        )
    return index


def _unit(
    folder: Path,
    kind: str,
    task: str,
    length: int | None,
    entry: Mapping[str, Any],
    part: str | None = None,
) -> Unit:
    return Unit(
        kind=kind,
        task=task,
        part=part,
        source=entry.get("source", "local"),
        capacity=entry["capacity"] if kind == "short" else None,
        length=length,
        metric=entry["metric"],
        chance=float(entry["chance"]),
        num_samples=int(entry["num_samples"]),
        max_tokens=int(entry["max_tokens"]),
        path=folder / entry["file"],
        sha256=entry["sha256"],
        settings=entry.get("settings", {}),
        fill=entry.get("fill"),
    )


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines with sorted keys, so that the same rows are the same bytes.

    Raises:
        StorageError: the disk is full or read-only.
    """
    text = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines.

    Raises:
        MismatchError: the file is missing or a line is not a JSON object; names file and line.
    """
    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                rows.append(_parse(path, number, line))
    except FileNotFoundError:
        raise MismatchError(f"{path}: is missing") from None
    return rows


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise MismatchError(f"{path}:{number}: is not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise MismatchError(f"{path}:{number}: is not a JSON object")
    return row
