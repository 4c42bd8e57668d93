"""Reads as much of each source as its buckets need, and says what every bucket is made of.

How far a source is read is a schedule: whole shards from the first one on, a first number that the
settings give, then more by what is still missing. So it does not depend on who tokenises them.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.data.duplicates import duplicate_masks
from longred.data.filling import Filler, Settled
from longred.data.kinds import kind_of
from longred.data.quotas import Quota
from longred.data.shards import Shard, ShardRecord, check_bytes, read_record, read_rows, read_table
from longred.data.sources import shards_of
from longred.data.tokenise import MIN_HELD_OUT_DOCUMENTS, TEXT_BYTES_PER_TOKEN, Job
from longred.errors import ConfigError, MismatchError

BYTES_PER_TOKEN = 4
GROWTH = 1.25
HISTOGRAM_EDGES = [0, *(round(2 ** (half / 2)) for half in range(2, 51))]

RunShards = Callable[[Sequence[Shard]], None]
"""Tokenises shards; when it returns, each has its record."""


class Reading:
    """One source, as far as it has been read.

    Args:
        job: settings, tokenizer and place.
        number: its position in `data.sources`.
        quotas: what it owes.

    Attributes:
        shards, records: what has been read.
        masks: for each shard, which documents have a text that came before.
        lengths: documents of each length class of HISTOGRAM_EDGES, without those.
        settled: what comes out.
        filler: draws the documents.
    """

    def __init__(self, job: Job, number: int, quotas: Sequence[Quota]) -> None:
        self.job, self.number, self.quotas = job, number, quotas
        self.source = job.config.sources[number]
        self.is_natural = kind_of(self.source).is_natural
        self.shards: list[Shard] = []
        self.records: list[ShardRecord] = []
        self.masks: list[npt.NDArray[np.bool_]] = []
        self.lengths = np.zeros(len(HISTOGRAM_EDGES) - 1, dtype=np.int64)
        self.settled = Settled()
        self.filler = Filler(quotas, job.config.validation_fraction)
        self._rest = shards_of(job.config, number)
        self._waiting: list[Shard] = []
        self._full_after = 0

    def first_shards(self) -> list[Shard]:
        """Return the shards that the settings say are needed; they wait to be added."""
        wanted = self._first_bytes()
        while wanted > 0:
            shard = next(self._rest, None)
            if shard is None:
                break
            self._waiting.append(shard)
            wanted -= shard.num_bytes
        return self._waiting

    def finish(self, run: RunShards, first_number: int, earlier: Sequence["Reading"]) -> None:
        """Add the shards that wait, and read on until the quotas are met or the text ends.

        Args:
            run: tokenises further shards.
            first_number: number that segments give to this source's first shard.
            earlier: sources whose texts are duplicates here.

        Raises:
            ConfigError: the source has no documents.
        """
        while self._waiting:
            before = self._train_blocks()
            self._add(first_number, earlier)
            self.settled = self.filler.settle()
            if not self._goes_on(before):
                break
            further = itertools.islice(self._rest, self._further())
            only = not self.shortages()
            self._waiting = [replace(shard, held_out_only=only) for shard in further]
            run(self._waiting)
        if not any(record.documents for record in self.records):
            raise ConfigError(
                f"data.sources.{self.number}: {self.source.name} has no usable documents"
            )

    def shortages(self) -> list[Quota]:
        """Return the training quotas that are not met."""
        return [q for q in self.quotas if q.split == "train" and self._blocks(q) < q.needed]

    def texts(self) -> list[dict[str, Any]]:
        """Return whole held-out texts, as many as are wanted where there are."""
        kept: list[dict[str, Any]] = []
        wanted = self._wanted_text_bytes()
        for shard, record, mask in zip(self.shards, self.records, self.masks, strict=True):
            rows = read_rows(shard, self.job.folder, ".texts.jsonl")
            for row, text in zip(record.text_rows, rows, strict=True):
                if wanted <= 0 and len(kept) >= MIN_HELD_OUT_DOCUMENTS:
                    return kept
                if not mask[row]:
                    kept.append(text)
                    wanted -= len(text["text"])
        return kept

    def _add(self, first_number: int, earlier: Sequence["Reading"]) -> None:
        """Draw buckets for the documents of the shards that wait."""
        for shard in self._waiting:
            record = read_record(shard, self.job.folder, self.job.identity)
            if record is None:
                raise MismatchError(
                    f"shard {shard.number} of source {shard.name} ({shard.label}) has no record in "
                    f"{self.job.folder}; run the same command again"
                )
            check_bytes(shard, record, self.job.folder)
            self.records.append(record)
        first = len(self.shards)
        self.shards += self._waiting
        masks = self._duplicates(earlier)[first:]
        for number, mask in enumerate(masks, start=first):
            table = read_table(self.shards[number], self.job.folder)
            self.filler.add(first_number + number, table, mask)
            self.lengths += np.histogram(table["length"][~mask], HISTOGRAM_EDGES)[0]
        self.masks += masks

    def _duplicates(self, earlier: Sequence["Reading"]) -> list[npt.NDArray[np.bool_]]:
        """Return the masks of this source's shards."""
        readings = [*earlier, self]
        shards = [shard for reading in readings for shard in reading.shards]
        sizes = [record.documents for reading in readings for record in reading.records]
        if not self.job.config.drop_duplicates:
            return [np.zeros(size, dtype=bool) for size in sizes[-len(self.shards) :]]
        found = duplicate_masks(
            sizes, lambda number: read_table(shards[number], self.job.folder)["text"]
        )
        return found[-len(self.shards) :]

    def _goes_on(self, blocks_before: int) -> bool:
        """Return whether to read on; held-out text at most doubles what is read."""
        if self.shortages():
            # Made texts never end, so they are given up when more of them do not help.
            return self.is_natural or self._train_blocks() > blocks_before
        self._full_after = self._full_after or len(self.shards)
        if len(self.shards) >= 2 * self._full_after:
            return False
        num_texts = sum(len(record.text_rows) for record in self.records)
        text_bytes = sum(record.text_bytes for record in self.records)
        lacks_texts = self.is_natural and (
            num_texts < MIN_HELD_OUT_DOCUMENTS or text_bytes < self._wanted_text_bytes()
        )
        return lacks_texts or any(self._blocks(quota) < quota.needed for quota in self.quotas)

    def _further(self) -> int:
        """Return how many more shards to read."""
        count = len(self.shards)
        lacking = [q.needed / max(1, self._blocks(q)) for q in self.shortages()]
        factor = min(2.0, max(lacking, default=1.0) * GROWTH)
        if not lacking:
            return min(max(1, count // 4), 2 * self._full_after - count)
        return max(1, math.ceil(count * factor) - count)

    def _first_bytes(self) -> int:
        needed = sum(q.needed * q.block_length for q in self.quotas if q.split == "train")
        return int(BYTES_PER_TOKEN * needed / (1 - self.job.config.validation_fraction))

    def _wanted_text_bytes(self) -> int:
        config = self.job.config
        natural = sum(kind_of(source).is_natural for source in config.sources)
        return TEXT_BYTES_PER_TOKEN * config.num_held_out_tokens // max(1, natural)

    def _blocks(self, quota: Quota) -> int:
        return self.settled.blocks.get((quota.split, quota.bucket), 0)

    def _train_blocks(self) -> int:
        return sum(n for (split, _), n in self.settled.blocks.items() if split == "train")
