"""Documents and their ids, and the count of rows that could not become a document."""

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from longred.errors import ConfigError, shown

MIN_HELD_OUT_DOCUMENTS = 30
"""Minimum number of whole held-out documents; `data.num_held_out_tokens` sets the tokens."""

REASONS = (
    "bad_json",
    "bad_parquet",
    "bad_utf8",
    "empty",
    "lone_surrogate",
    "missing_field",
    "not_object",
    "oversized",
    "truncated_stream",
    "unreadable",
    "wrong_type",
)
"""Why a row is rejected."""

HARMLESS = "empty"
"""The reason that does not count towards `max_rejected_fraction`."""

MAX_QUARANTINED = 1000
RAW_BYTES = 256


@dataclass(frozen=True, slots=True)
class Document:
    """One raw text of a source.

    Attributes:
        id: `document_id` of its source, path and offset.
        path: POSIX path relative to the source's root.
        offset: byte offset or row number in the file.
        text: the raw text.
    """

    id: str
    path: str
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file before it becomes a document.

    Attributes:
        number: from 1, counted from the start of the part of the file that is read.
        offset: position of its first byte in the uncompressed file, or its index in a table.
        raw: its bytes without the line end; if it is oversized, the first ones.
        problem: reason why it cannot be used, found while reading; empty if none.
        sha256: digest of all bytes of an oversized row.
    """

    number: int
    offset: int
    raw: bytes
    problem: str = ""
    sha256: str = ""


def document_id(source: str, relative_path: str, offset: int = 0) -> str:
    """Return the sha256 hex digest that identifies a document on every machine.

    Args:
        source: the source's name in the recipe.
        relative_path: POSIX path relative to the source's root.
        offset: byte offset or row number in the file; 0 if the file is one document.
    """
    return hashlib.sha256(f"{source}\0{relative_path}\0{offset}".encode()).hexdigest()


def is_held_out(document: str, fraction: float) -> bool:
    """Return whether the document with this id belongs to the held-out split.

    Args:
        document: a `document_id`.
        fraction: expected share of held-out documents, in [0, 1).
    """
    return int(document[:16], 16) / 2**64 < fraction


class Rejection(Exception):
    """A row cannot be used; the message is one of REASONS."""


@dataclass(slots=True)
class Intake:
    """Counts the usable and rejected rows of one shard and saves the first rejected ones.

    Args:
        source: the source's name.
        max_rejected_fraction: highest allowed share of rejected rows, not counting empty rows.
        max_characters: longer texts are rejected.

    Attributes:
        seen, rejected: number of rows, and of rejected rows by reason.
        quarantine: the first rejected rows.
        num_lines: path → lines read from it, to number the lines of later byte ranges.
    """

    source: str
    max_rejected_fraction: float
    max_characters: int
    seen: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    num_lines: Counter[str] = field(default_factory=Counter)
    _fields: tuple[str, list[str]] | None = None
    _first: str = field(default="", init=False)

    def take(self) -> None:
        """Count a usable row."""
        self.seen += 1

    def reject(self, reason: str, path: str, row: Row) -> None:
        """Count a rejected row and save the start of its bytes.

        Args:
            reason: one of REASONS.
            path: POSIX path relative to the source's root.
            row: the row.
        """
        self.seen += 1
        self.rejected[reason] += 1
        if reason != HARMLESS and not self._first:
            self._first = f"{path}, line {row.number} (offset {row.offset})"
        if len(self.quarantine) < MAX_QUARANTINED:
            self.quarantine.append(
                {
                    "source": self.source,
                    "path": path,
                    "offset": row.offset,
                    "line": row.number,
                    "reason": reason,
                    "sha256": row.sha256 or hashlib.sha256(row.raw).hexdigest(),
                    "raw": row.raw[:RAW_BYTES].decode("utf-8", errors="backslashreplace"),
                }
            )

    def check(self, shard: str, evidence: str) -> None:
        """Check the share of rejected rows after the whole shard has been read.

        Args:
            shard: name of the shard in messages.
            evidence: file that lists the rejected rows; empty if there is none.

        Raises:
            ConfigError: too many rows were rejected.
        """
        bad = self.rejected.total() - self.rejected[HARMLESS]
        if not bad or bad <= self.max_rejected_fraction * self.seen:
            return
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(self.rejected.items()))
        needed = math.ceil(bad / self.seen * 1e4) / 1e4
        where = f", all in {evidence}" if evidence else ""
        raise ConfigError(
            f"data.max_rejected_fraction: {bad} of {self.seen} rows of {shard} (source "
            f"{self.source}) cannot be used: {reasons}, the first at {self._first}"
            f"{where}; {self._advice()}repair them or raise the limit from "
            f"{self.max_rejected_fraction:g} to at least {needed:g}"
        )

    def _advice(self) -> str:
        """Return how to name the field of the text, if rows lack it."""
        if self._fields is None:
            return ""
        field, others = self._fields
        has = f"; the first such row has {', '.join(map(shown, others))}" if others else ""
        return f"no field {shown(field)}{has}: name it by the source's text_field, "

    def text(self, row: Any, text_field: str) -> str:
        """Return the text of a table row or a JSON object.

        Raises:
            Rejection: it is not an object, lacks the field, or the field holds no usable text.
        """
        if not isinstance(row, dict):
            raise Rejection("not_object")
        if row.get(text_field) is None:
            if self._fields is None:
                self._fields = (text_field, [str(name) for name in row][:5])
            raise Rejection("missing_field")
        return self.checked(row[text_field])

    def checked(self, text: Any) -> str:
        """Return a text if a tokenizer can read it.

        Raises:
            Rejection: it is not a string, is blank, too long, or contains a lone surrogate.
        """
        if not isinstance(text, str):
            raise Rejection("wrong_type")
        if len(text) > self.max_characters:
            raise Rejection("oversized")
        if not text or text.isspace():
            raise Rejection("empty")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Rejection("lone_surrogate") from None
        return text
