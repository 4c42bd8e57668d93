"""What is asked of a model in one go: a short task, or a RULER task at one length."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longred.artifacts import read_json, sha256_file, storage_errors
from longred.errors import MismatchError

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Frozen samples that are asked together, and how their answers are scored.

    Attributes:
        kind: `short` or `ruler`.
        task: the task's name.
        capacity: what a short task stands for; None for RULER.
        length: tokens of prompt and answer together; None for short tasks.
        metric: `choice`, `exact_match`, `recall` or `any_match`.
        chance: percent that guessing scores.
        max_tokens: tokens of the longest prompt with its answer.
        path: file of samples.
        sha256: hash of that file.
    """

    kind: str
    task: str
    capacity: str | None
    length: int | None
    metric: str
    chance: float
    max_tokens: int
    path: Path
    sha256: str

    @property
    def key(self) -> str:
        """The unit's name in files."""
        return f"{self.kind}-{self.task}" + (f"-{self.length}" if self.length else "")

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
    units = [_unit(samples_folder, "short", task, None, e) for task, e in index["short"].items()]
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


def _unit(folder: Path, kind: str, task: str, length: int | None, entry: Mapping[str, Any]) -> Unit:
    return Unit(
        kind=kind,
        task=task,
        capacity=entry["capacity"] if kind == "short" else None,
        length=length,
        metric=entry["metric"],
        chance=float(entry["chance"]),
        max_tokens=int(entry["max_tokens"]),
        path=folder / entry["file"],
        sha256=entry["sha256"],
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
