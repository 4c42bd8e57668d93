"""Documents and their ids, and the count of rows that could not become a document."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

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
        max_characters: longer texts are rejected.

    Attributes:
        seen, rejected: number of rows, and of rejected rows by reason.
        quarantine: the first rejected rows.
        num_lines: path → lines read from it, to number the lines of later byte ranges.
        first: path, line and offset of the first rejected row that is not empty.
        fields_instead: first field names of the first row that lacks the text field.
    """

    source: str
    max_characters: int
    seen: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    num_lines: Counter[str] = field(default_factory=Counter)
    first: tuple[str, int, int] | None = None
    fields_instead: list[str] | None = None

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
        if reason != HARMLESS and not self.first:
            self.first = (path, row.number, row.offset)
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

    def text(self, row: Any, text_field: str) -> str:
        """Return the text of a table row or a JSON object.

        Raises:
            Rejection: it is not an object, lacks the field, or the field holds no usable text.
        """
        if not isinstance(row, dict):
            raise Rejection("not_object")
        if row.get(text_field) is None:
            if self.fields_instead is None:
                self.fields_instead = [str(name) for name in row][:5]
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
