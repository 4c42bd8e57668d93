"""Shards, the unit of work; the files each one writes; and the record that marks it as finished."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from longred.errors import MismatchError
from longred.store.artifacts import sha256_file, storage_errors

TABLE = np.dtype(
    [("split", "<u8"), ("draw", "<u8"), ("text", "<u8"), ("start", "<u8"), ("length", "<u4")]
)
"""One row per document: two 64-bit words of its id, the first 64 bits of its text's sha256, and the
position and number of its tokens in the shard's file."""


@dataclass(frozen=True, slots=True)
class Part:
    """A range of one file; the kind of source defines its unit.

    Attributes:
        path: POSIX path relative to the source's root.
        start, end: bytes, row groups, or indices of texts; 0 and 0 for a whole file.
        num_bytes: approximate size of its text.
    """

    path: str
    start: int = 0
    end: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work: tokenised at once, and repeated as a whole after a crash.

    Attributes:
        source: index of the source in `data.sources`.
        name: the source's name.
        number: index among the source's shards.
        parts: what it reads, in order.
        held_out_only: whether documents of the training split are skipped.
    """

    source: int
    name: str
    number: int
    parts: tuple[Part, ...]
    held_out_only: bool = False

    @property
    def num_bytes(self) -> int:
        """Approximate size of its text."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def label(self) -> str:
        """Its name in messages."""
        first, count = self.parts[0], len(self.parts)
        label = f"{first.path}[{first.start}:{first.end}]" if first.end else first.path
        return label if count == 1 else f"{label} and {count - 1} more"

    @property
    def continued(self) -> set[str]:
        """Paths of the files of which it reads a range behind the start."""
        return {part.path for part in self.parts if part.start}

    def path(self, work: Path, suffix: str) -> Path:
        """Return the path of one of its files in a work folder."""
        kind = "held-out-" if self.held_out_only else ""
        return work / "shards" / self.name / f"{kind}{self.number:06d}{suffix}"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the shard from its `asdict` values."""
        return cls(**{**values, "parts": tuple(Part(**part) for part in values["parts"])})


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """Counts and files of a tokenised shard; written last, so it marks the shard as finished.

    Attributes:
        identity: digest of settings, tokenizer and texts.
        seen, rejected: all rows, and the unusable ones by reason.
        num_lines: path → lines read from it.
        first_rejected, fields_instead: `Intake.first` and `Intake.fields_instead`.
        documents: texts tokenised.
        contaminated: texts skipped because they share an n-gram with the evaluation.
        read_tokens, written_tokens: before and after texts of a fixed length are cut.
        text_rows: table row of each saved held-out text.
        text_bytes: total size of those texts.
        files: suffix → size and sha256 of each file written.
    """

    identity: str
    seen: int
    rejected: dict[str, int]
    num_lines: dict[str, int]
    first_rejected: tuple[str, int, int] | None
    fields_instead: list[str] | None
    documents: int
    contaminated: int
    read_tokens: int
    written_tokens: int
    text_rows: list[int]
    text_bytes: int
    files: dict[str, dict[str, Any]]


def read_record(shard: Shard, work: Path, identity: str) -> ShardRecord | None:
    """Return the record of a finished shard; None if it is missing, outdated or incomplete.

    Compares file sizes only; `check_bytes` also compares the content.
    """
    try:
        values = json.loads(shard.path(work, ".json").read_text(encoding="utf-8"))
        record = ShardRecord(**values)
        is_complete = record.identity == identity and all(
            shard.path(work, suffix).stat().st_size == entry["size"]
            for suffix, entry in record.files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if is_complete else None


def check_bytes(shard: Shard, record: ShardRecord, work: Path) -> None:
    """Compare the content of a shard's files with its record.

    Raises:
        MismatchError: a file differs; the message names it.
    """
    for suffix, entry in record.files.items():
        path = shard.path(work, suffix)
        if not path.is_file() or sha256_file(path) != entry["sha256"]:
            raise MismatchError(
                f"{path}: differs from its record (shard {shard.number} of source {shard.name}, "
                f"{shard.label}); delete {shard.path(work, '.json')} and run the same command to "
                "tokenise it again"
            )


def read_table(shard: Shard, work: Path) -> npt.NDArray[Any]:
    """Return the document table of a finished shard, of dtype TABLE."""
    return np.load(shard.path(work, ".npy"), allow_pickle=False)  # type: ignore[no-any-return]


def read_rows(shard: Shard, work: Path, suffix: str) -> list[dict[str, Any]]:
    """Return the rows of a shard's JSON lines file."""
    with shard.path(work, suffix).open("rb") as file:
        return [json.loads(line) for line in file]


def write_atomically(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file that appears under its name only when it is complete and on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        with temporary.open("wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def to_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """Return rows as lines of JSON."""
    return (json.dumps(row, sort_keys=True).encode() + b"\n" for row in rows)
