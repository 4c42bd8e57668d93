"""Counts the rows of a shard: taken or rejected, why, and whether too many were."""

import hashlib
import math
from collections import Counter
from typing import Any

from longred.errors import ConfigError

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
HARMLESS = ("empty",)
MAX_QUARANTINED = 1000
RAW_BYTES = 256


class Rejection(Exception):
    """A row cannot be used; `reason` is one of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Intake:
    """The counts of one shard, and its first rejected rows as evidence.

    Args:
        source: the source's name.
        max_rejected_fraction: a shard with a larger share of rejected rows is an error; empty rows
            are not counted as rejected there.
        max_characters: longer texts are rejected.

    Attributes:
        num_lines: path → lines read of it, so that lines of a later stretch can be counted on.
    """

    def __init__(self, source: str, max_rejected_fraction: float, max_characters: int) -> None:
        self.source = source
        self.max_rejected_fraction = max_rejected_fraction
        self.max_characters = max_characters
        self.seen = 0
        self.rejected: Counter[str] = Counter()
        self.quarantine: list[dict[str, Any]] = []
        self.num_lines: Counter[str] = Counter()
        self._first = ""

    def take(self) -> None:
        """Count a usable row."""
        self.seen += 1

    def reject(
        self,
        reason: str,
        path: str,
        *,
        offset: int,
        line: int,
        raw: bytes,
        sha256: str | None = None,
    ) -> None:
        """Count a row that cannot be used and keep the start of its bytes.

        Args:
            reason: one of REASONS.
            path: POSIX path relative to the source's root.
            offset: where the row starts: bytes, or the row's number where rows have no byte offset.
            line: the row's number in what is read of the file, from 1.
            raw: its bytes, or their start.
            sha256: of all its bytes; of `raw` when left out.
        """
        self.seen += 1
        self.rejected[reason] += 1
        if reason not in HARMLESS and not self._first:
            self._first = f"{path}, line {line} (offset {offset})"
        if len(self.quarantine) < MAX_QUARANTINED:
            self.quarantine.append(
                {
                    "source": self.source,
                    "path": path,
                    "offset": offset,
                    "line": line,
                    "reason": reason,
                    "sha256": sha256 or hashlib.sha256(raw).hexdigest(),
                    "raw": raw[:RAW_BYTES].decode("utf-8", errors="backslashreplace"),
                }
            )

    def check(self, shard: str, evidence: str) -> None:
        """Check the shard when it has been read to its end.

        Args:
            shard: what to call it.
            evidence: where the rejected rows are listed.

        Raises:
            ConfigError: too large a share of its rows was rejected.
        """
        bad = sum(n for reason, n in self.rejected.items() if reason not in HARMLESS)
        if not bad or bad <= self.max_rejected_fraction * self.seen:
            return
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(self.rejected.items()))
        needed = math.ceil(bad / self.seen * 1e4) / 1e4
        raise ConfigError(
            f"data.max_rejected_fraction: {bad} of {self.seen} rows of {shard} (source "
            f"{self.source}) cannot be used: {reasons}, the first at {self._first}, all in "
            f"{evidence}; mend them or raise the limit from {self.max_rejected_fraction:g} to at "
            f"least {needed:g}"
        )

    def text(self, row: Any, text_field: str) -> str:
        """Return the text of a row of a table or of a line of JSON.

        Raises:
            Rejection: it is no object, has no such field, or the field holds no usable text.
        """
        if not isinstance(row, dict):
            raise Rejection("not_object")
        if row.get(text_field) is None:
            raise Rejection("missing_field")
        return self.checked(row[text_field])

    def checked(self, text: Any) -> str:
        """Return a text if a tokenizer can read it.

        Raises:
            Rejection: it is no string, holds only white space, is too long, or holds half of a
                surrogate pair.
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
