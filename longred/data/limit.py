"""The limit of rows that cannot be used: `data.max_rejected_fraction`, over all shards of a source.

What it decides depends only on the shards' order in the source, not on when each was finished.
"""

import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longred.data.documents import HARMLESS
from longred.data.shards import Shard, ShardRecord, read_record, read_rows
from longred.data.tokenise import Job
from longred.errors import ConfigError, shown

MANY_ROWS = 10_000
"""Rows at the start of a source after which it is given up if most are unusable; with fewer rows,
more are read before the limit is applied."""


class Limit:
    """Counts the rows of one source, shard by shard in order.

    Args:
        job: settings and work folder.
        number: index of the source in `data.sources`.

    Attributes:
        seen, rejected: number of rows, and of rejected rows by reason.
    """

    def __init__(self, job: Job, number: int) -> None:
        self.job, self.source = job, job.config.sources[number]
        self.fraction = job.config.max_rejected_fraction
        self.seen = 0
        self.rejected: Counter[str] = Counter()
        self._lines: Counter[str] = Counter()
        self._first = ""
        self._advice = ""
        self._evidence: list[Path] = []

    def add(self, shard: Shard, record: ShardRecord) -> None:
        """Count the next shard of the source.

        Raises:
            ConfigError: MANY_ROWS or more were read, and most of them cannot be used.
        """
        self.seen += record.seen
        self.rejected.update(record.rejected)
        if any(reason != HARMLESS for reason in record.rejected):
            self._evidence.append(shard.path(self.job.folder, ".quarantine.jsonl"))
        if record.first_rejected and not self._first:
            path, line, offset = record.first_rejected
            before = self._lines[path] if path in shard.continued else 0
            self._first = f"{path}, line {line + before} (offset {offset})"
        if record.fields_instead is not None and not self._advice:
            self._advice = self._name_the_field(record.fields_instead)
        self._lines.update(record.num_lines)
        if self.seen >= MANY_ROWS and 2 * self.num_bad > self.seen:
            self.check()

    @property
    def num_bad(self) -> int:
        """Number of rejected rows, without those that are empty."""
        return self.rejected.total() - self.rejected[HARMLESS]

    @property
    def is_exceeded(self) -> bool:
        """Whether too many of the rows read so far were rejected."""
        return self.num_bad > self.fraction * self.seen

    @property
    def needs_rows(self) -> bool:
        """Whether the limit is exceeded in so few rows that further ones may be better."""
        if not self.fraction:
            return False
        return self.is_exceeded and self.seen < max(MANY_ROWS, 1 / self.fraction)

    def check(self) -> None:
        """Check the share of rejected rows in what was read.

        Raises:
            ConfigError: too many rows were rejected.
        """
        if not self.is_exceeded:
            return
        bad, seen = self.num_bad, self.seen
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(self.rejected.items()))
        where = "" if self.job.is_rehearsal else f", listed in {self._listed()}"
        needed = math.ceil(bad / seen * 1e4) / 1e4
        remedy = f"repair them or raise the limit from {self.fraction:g} to at least {needed:g}"
        if needed >= 1:  # the highest limit is below 1
            remedy = f"{'or ' if self._advice else ''}repair them (the limit is {self.fraction:g})"
        raise ConfigError(
            f"data.max_rejected_fraction: {bad} of {seen} rows of source {self.source.name} cannot "
            f"be used: {reasons}, the first at {self._first}{where}; {self._advice}{remedy}"
        )

    def _listed(self) -> str:
        """Return the file with the rejected rows, or a glob of several."""
        first, *others = self._evidence
        return str(first.parent / "*.quarantine.jsonl" if others else first)

    def _name_the_field(self, others: Sequence[str]) -> str:
        """Return how to name the field of the text."""
        has = f"; the first such row has {', '.join(map(shown, others))}" if others else ""
        field = shown(self.source.text_field)
        return f"no field {field}{has}: name it by the source's text_field, "


class Watch:
    """Applies the limits to shards in order while they are tokenised in any order.

    Args:
        job: settings and work folder.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._limits: dict[int, Limit] = {}
        self._waiting: dict[int, deque[Shard]] = {}

    def expect(self, shards: Sequence[Shard]) -> None:
        """Add shards that will be finished, for each source in order."""
        for shard in shards:
            self._limits.setdefault(shard.source, Limit(self.job, shard.source))
            self._waiting.setdefault(shard.source, deque()).append(shard)

    def look(self) -> None:
        """Count the shards that were finished since the last call, as far as none is missing.

        Raises:
            ConfigError: most rows of a source cannot be used, as `Limit.add`.
        """
        for number, waiting in self._waiting.items():
            while waiting:
                record = read_record(waiting[0], self.job.folder, self.job.identity)
                if record is None:
                    break
                self._limits[number].add(waiting.popleft(), record)


def quarantined(
    shards: Sequence[Shard], records: Sequence[ShardRecord], work: Path
) -> Iterator[Mapping[str, Any]]:
    """Yield rejected rows of a source; line numbers of a byte range become those of the file."""
    lines: Counter[str] = Counter()
    for shard, record in zip(shards, records, strict=True):
        for row in read_rows(shard, work, ".quarantine.jsonl"):
            before = lines[row["path"]] if row["path"] in shard.continued else 0
            yield {**row, "line": row["line"] + before}
        lines.update(record.num_lines)
