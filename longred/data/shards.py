"""What a unit of work is: a shard of a source, and the record that it leaves behind."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from longred.errors import MismatchError
from longred.store.artifacts import read_json, sha256_file, storage_errors

TABLE = np.dtype(
    [("split", "<u8"), ("draw", "<u8"), ("text", "<u8"), ("start", "<u8"), ("length", "<u4")]
)
"""One row a document: two words of its id, the first word of its text's sha256, and where its
tokens stand in the shard's file."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of one file, as its source's kind understands it.

    Attributes:
        path: POSIX path relative to the source's root.
        start, end: bytes, row groups, or numbers of texts; 0 and 0 for a whole file.
        num_bytes: about how much text it holds.
    """

    path: str
    start: int = 0
    end: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work: what is tokenised at once, and done again after a crash.

    Attributes:
        source: the source's position in `data.sources`, from 0.
        name: the source's name.
        number: its place among the source's shards, from 0.
        parts: what it reads, in order.
        held_out_only: whether documents of the training split are left out, once there are enough.
    """

    source: int
    name: str
    number: int
    parts: tuple[Part, ...]
    held_out_only: bool = False

    @property
    def num_bytes(self) -> int:
        """About how much text it holds."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def label(self) -> str:
        """What to call it in messages."""
        first, count = self.parts[0], len(self.parts)
        place = f"{first.path}[{first.start}:{first.end}]" if first.end else first.path
        return place if count == 1 else f"{place} and {count - 1} more"

    def path(self, work: Path, suffix: str) -> Path:
        """Return the path of one of its files in a work folder."""
        kind = "held-out-" if self.held_out_only else ""
        return work / "shards" / self.name / f"{kind}{self.number:06d}{suffix}"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the shard that `asdict` was made of."""
        return cls(**{**values, "parts": tuple(Part(**part) for part in values["parts"])})


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What tokenising a shard gave; written last, so that a shard with a record is finished.

    Attributes:
        identity: of settings, tokenizer and texts; another one is other work.
        seen, rejected: rows, and those that cannot be used, by reason.
        num_lines: path → lines read of it, where a file is read in stretches.
        documents: texts tokenised.
        contaminated: texts that hold an n-gram of the evaluation's.
        read_tokens, written_tokens: before and after texts of a fixed length are cut.
        text_rows: row in the table of each held-out text that is kept.
        text_bytes: size of those texts.
        files: suffix → size and sha256 of what was written.
    """

    identity: str
    seen: int
    rejected: dict[str, int]
    num_lines: dict[str, int]
    documents: int
    contaminated: int
    read_tokens: int
    written_tokens: int
    text_rows: list[int]
    text_bytes: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def read_record(shard: Shard, work: Path, identity: str) -> ShardRecord | None:
    """Return the record of a finished shard; None where it is missing or not whole.

    Sizes are compared; `open_tokens` also compares the bytes.
    """
    try:
        values = json.loads(shard.path(work, ".json").read_text(encoding="utf-8"))
        record = ShardRecord(**values)
        whole = record.identity == identity and all(
            shard.path(work, suffix).stat().st_size == entry["size"]
            for suffix, entry in record.files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def check_bytes(shard: Shard, record: ShardRecord, work: Path) -> None:
    """Compare what a shard wrote with its record.

    Raises:
        MismatchError: a byte differs; the message names the file.
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
    """Return the table of a finished shard's documents, of dtype TABLE."""
    table: npt.NDArray[Any] = np.load(shard.path(work, ".npy"), allow_pickle=False)
    return table


def read_rows(shard: Shard, work: Path, suffix: str) -> list[dict[str, Any]]:
    """Return the lines of JSON that a shard wrote."""
    with shard.path(work, suffix).open("rb") as file:
        return [json.loads(line) for line in file]


def write_whole(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file of a work folder so that a crash leaves nothing under its name."""
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


def read_shards(path: Path) -> list[Shard]:
    """Return the shards of a list in a work folder."""
    return [Shard.from_json(values) for values in read_json(path)]
