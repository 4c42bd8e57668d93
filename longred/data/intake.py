"""Counts the rows of a source: taken or rejected, why, and whether too many were."""

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from longred.errors import ConfigError

REASONS = (
    "bad_json",
    "bad_utf8",
    "not_object",
    "missing_field",
    "wrong_type",
    "empty",
    "lone_surrogate",
    "truncated_stream",
)
HARMLESS = ("empty",)
MAX_QUARANTINED = 1000
RAW_BYTES = 256


class Rejection(Exception):
    """A row cannot be used; `reason` is one of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class _Shard:
    seen: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first: str = ""


class Intake:
    """The counts of one source, and the first rejected rows as evidence.

    Args:
        source: the source's name.
        max_rejected_fraction: a shard with a larger share of rejected rows is an error; empty rows
            are not counted as rejected there.
    """

    def __init__(self, source: str, max_rejected_fraction: float) -> None:
        self.source = source
        self.max_rejected_fraction = max_rejected_fraction
        self.seen = 0
        self.rejected: Counter[str] = Counter()
        self.quarantine: list[dict[str, Any]] = []
        self._shards: dict[str, _Shard] = {}

    def take(self, shard: str) -> None:
        """Count a usable row of a shard."""
        self.seen += 1
        self._shards.setdefault(shard, _Shard()).seen += 1

    def reject(
        self, shard: str, reason: str, path: str, *, offset: int, line: int, raw: bytes
    ) -> None:
        """Count a row that cannot be used and keep the start of its bytes.

        Args:
            shard: the unit whose share of rejected rows is bounded: a file of rows, or a folder.
            reason: one of REASONS.
            path: POSIX path relative to the source's root.
            offset: where the row starts: bytes, or the row's number where rows have no byte offset.
            line: the row's number in the file, from 1.
            raw: its bytes.
        """
        self.take(shard)
        self.rejected[reason] += 1
        counts = self._shards[shard]
        counts.rejected[reason] += 1
        if reason not in HARMLESS and not counts.first:
            counts.first = f"{path}:{line}"
        if len(self.quarantine) < MAX_QUARANTINED:
            self.quarantine.append(
                {
                    "source": self.source,
                    "path": path,
                    "offset": offset,
                    "line": line,
                    "reason": reason,
                    "sha256": hashlib.sha256(raw).hexdigest(),
                    "raw": raw[:RAW_BYTES].decode("utf-8", errors="backslashreplace"),
                }
            )

    def end_shard(self, shard: str) -> None:
        """Forget a shard that was read to its end.

        Raises:
            ConfigError: too large a share of its rows was rejected.
        """
        counts = self._shards.pop(shard, _Shard())
        bad = sum(n for reason, n in counts.rejected.items() if reason not in HARMLESS)
        if not bad or bad <= self.max_rejected_fraction * counts.seen:
            return
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.rejected.items()))
        needed = math.ceil(bad / counts.seen * 1e4) / 1e4
        raise ConfigError(
            f"data.max_rejected_fraction: {bad} of {counts.seen} rows of {shard} (source "
            f"{self.source}) cannot be used: {reasons}, the first at {counts.first}; mend them or "
            f"raise the limit from {self.max_rejected_fraction:g} to at least {needed:g}"
        )

    def end(self) -> None:
        """Check the shards that are still open, as when reading stops early.

        Raises:
            ConfigError: too large a share of the rows of one was rejected.
        """
        for shard in list(self._shards):
            self.end_shard(shard)


def checked_text(text: Any) -> str:
    """Return a row's text if a tokenizer can read it.

    Raises:
        Rejection: it is no string, holds only white space, or holds half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise Rejection("wrong_type")
    if not text.strip():
        raise Rejection("empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Rejection("lone_surrogate") from None
    return text


def text_of(row: Any, text_field: str) -> str:
    """Return the text of a row of a table or of a line of JSON.

    Raises:
        Rejection: it is no object, has no such field, or the field holds no usable text.
    """
    if not isinstance(row, dict):
        raise Rejection("not_object")
    if row.get(text_field) is None:
        raise Rejection("missing_field")
    return checked_text(row[text_field])
