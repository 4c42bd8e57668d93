"""Reads as much of each source as its buckets need, and skips duplicate documents.

Shards are read in order: a first number that follows from the settings, then more according to what
is still missing. So the amount read does not depend on how shards are tokenised.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.data.documents import MIN_HELD_OUT_DOCUMENTS
from longred.data.filling import Filler, Selection
from longred.data.layout import SPLITS
from longred.data.limit import Limit
from longred.data.quotas import Quota
from longred.data.shards import Shard, ShardRecord, check_bytes, read_record, read_rows, read_table
from longred.data.sources import kind_of, shards_of
from longred.data.tokenise import TEXT_BYTES_PER_TOKEN, Job
from longred.errors import ConfigError, MismatchError

BYTES_PER_TOKEN = 4
GROWTH = 1.25
HISTOGRAM_EDGES = [0, *(round(2 ** (half / 2)) for half in range(2, 51))]
HASHES_AT_ONCE = 2**23

RunShards = Callable[[Sequence[Shard]], None]
"""Tokenises shards; when it returns, each has its record."""


class Reading:
    """One source, as far as it has been read.

    Args:
        job: settings, tokenizer and work folder.
        number: index of the source in `data.sources`.
        quotas: the blocks that the source has to provide.

    Attributes:
        shards, records: what has been read.
        masks: for each shard, which documents have a text that occurred earlier.
        lengths: histogram of document lengths over HISTOGRAM_EDGES, without duplicates.
        selection: the blocks that can be written from it.
        filler: assigns the documents to buckets.
        limit: counts the rows that cannot be used.
    """

    def __init__(self, job: Job, number: int, quotas: Sequence[Quota]) -> None:
        self.job, self.number, self.quotas = job, number, quotas
        self.source = job.config.sources[number]
        self.is_natural = kind_of(self.source).is_natural
        self.shards: list[Shard] = []
        self.records: list[ShardRecord] = []
        self.masks: list[npt.NDArray[np.bool_]] = []
        self.lengths = np.zeros(len(HISTOGRAM_EDGES) - 1, dtype=np.int64)
        self.selection = Selection()
        self.filler = Filler(quotas, job.config.validation_fraction)
        self.limit = Limit(job, number)
        self._rest = shards_of(job.config, number)
        self._waiting: list[Shard] = []
        # Number of shards after which the training quotas were met; 0 until then.
        self._full_after = 0

    def first_shards(self) -> list[Shard]:
        """Return the shards that are needed according to the settings; `finish` adds them."""
        train, held_out = (
            sum(q.needed * q.block_length for q in self.quotas if q.split == split)
            for split in SPLITS
        )
        fraction = self.job.config.validation_fraction
        wanted = int(BYTES_PER_TOKEN * (train / (1 - fraction) if train else held_out / fraction))
        while wanted > 0:
            shard = next(self._rest, None)
            if shard is None:
                break
            self._waiting.append(shard if train else replace(shard, held_out_only=True))
            wanted -= shard.num_bytes
        return self._waiting

    def finish(self, run: RunShards, first_number: int, earlier: Sequence["Reading"]) -> None:
        """Add the waiting shards and read on until the quotas are met or the text ends.

        Args:
            run: tokenises further shards.
            first_number: number of this source's first shard in the segments.
            earlier: sources whose texts are duplicates here.

        Raises:
            ConfigError: the source has no documents, or too many rows that cannot be used.
        """
        while self._waiting:
            before = self._num_train_blocks()
            self._add_waiting(first_number, earlier)
            self.selection = self.filler.select()
            if not self._reads_on(before):
                break
            further = itertools.islice(self._rest, self._num_further_shards())
            only = not self.shortages()
            self._waiting = [replace(shard, held_out_only=only) for shard in further]
            run(self._waiting)
        self.limit.check()
        is_read = any(quota.needed for quota in self.quotas)
        if is_read and not any(record.documents for record in self.records):
            raise ConfigError(
                f"data.sources.{self.number}: {self.source.name} has no usable documents"
            )

    def shortages(self) -> list[Quota]:
        """Return the training quotas that are not met."""
        return [q for q in self.quotas if q.split == "train" and self._blocks(q) < q.needed]

    def tables(self) -> list[npt.NDArray[Any]]:
        """Return the table of each shard, of dtype `shards.TABLE`."""
        return [read_table(shard, self.job.folder) for shard in self.shards]

    def texts(self) -> list[dict[str, Any]]:
        """Return whole held-out texts, as many as wanted and available."""
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

    def _add_waiting(self, first_number: int, earlier: Sequence["Reading"]) -> None:
        """Assign the documents of the waiting shards to buckets."""
        work = self.job.folder
        for shard in self._waiting:
            record = read_record(shard, work, self.job.identity)
            if record is None:
                raise MismatchError(
                    f"shard {shard.number} of source {shard.name} ({shard.label}) has no record in "
                    f"{work}; run the same command again"
                )
            check_bytes(shard, record, work)
            self.records.append(record)
            self.limit.add(shard, record)
        first = len(self.shards)
        self.shards += self._waiting
        readings = [*earlier, self]
        shards = [shard for reading in readings for shard in reading.shards]
        sizes = [record.documents for reading in readings for record in reading.records]
        if self.job.config.drop_duplicates:
            masks = duplicate_masks(sizes, lambda number: read_table(shards[number], work)["text"])
        else:
            masks = [np.zeros(size, dtype=bool) for size in sizes]
        new_masks = masks[len(shards) - len(self._waiting) :]
        for number, mask in enumerate(new_masks, start=first):
            table = read_table(self.shards[number], work)
            self.filler.add(first_number + number, table, mask)
            self.lengths += np.histogram(table["length"][~mask], HISTOGRAM_EDGES)[0]
        self.masks += new_masks

    def _reads_on(self, blocks_before: int) -> bool:
        """Return whether to read on; for held-out text at most twice as many shards are read.

        If the few rows read so far exceed the limit of rejected ones, more are read to judge it: an
        unreadable file counts as one row, and may have been among the first shards by chance.
        """
        if self.shortages():
            # Generated texts never end, so stop when more of them do not help.
            return self.is_natural or self._num_train_blocks() > blocks_before
        self._full_after = self._full_after or len(self.shards)
        if self.limit.needs_rows:
            return True
        if len(self.shards) >= 2 * self._full_after:
            return False
        num_texts = sum(len(record.text_rows) for record in self.records)
        text_bytes = sum(record.text_bytes for record in self.records)
        lacks_texts = self.is_natural and (
            num_texts < MIN_HELD_OUT_DOCUMENTS or text_bytes < self._wanted_text_bytes()
        )
        return lacks_texts or any(self._blocks(quota) < quota.needed for quota in self.quotas)

    def _num_further_shards(self) -> int:
        count = len(self.shards)
        lacking = [q.needed / max(1, self._blocks(q)) for q in self.shortages()]
        if not lacking and self.limit.needs_rows:
            return count
        if not lacking:
            return min(max(1, count // 4), 2 * self._full_after - count)
        return max(1, math.ceil(count * min(2.0, max(lacking) * GROWTH)) - count)

    def _wanted_text_bytes(self) -> int:
        config = self.job.config
        num_natural = sum(kind_of(source).is_natural for source in config.sources)
        return TEXT_BYTES_PER_TOKEN * config.num_held_out_tokens // max(1, num_natural)

    def _blocks(self, quota: Quota) -> int:
        return self.selection.blocks.get((quota.split, quota.bucket), 0)

    def _num_train_blocks(self) -> int:
        return sum(n for (split, _), n in self.selection.blocks.items() if split == "train")


def duplicate_masks(
    sizes: Sequence[int], load: Callable[[int], npt.NDArray[np.uint64]]
) -> list[npt.NDArray[np.bool_]]:
    """Return for each document of some shards whether an earlier one has the same text.

    Texts are compared by 64 bits of their sha256: among 100 million distinct texts, the chance of
    any collision is 0.03 %, and its only effect is a skipped document. Memory is bounded: each pass
    compares about HASHES_AT_ONCE hashes.

    Args:
        sizes: number of documents of each shard.
        load: returns the hashes of the texts of one shard.
    """
    starts = np.cumsum([0, *sizes])
    is_duplicate = np.zeros(int(starts[-1]), dtype=bool)
    num_passes = max(1, -(-len(is_duplicate) // HASHES_AT_ONCE))
    for number in range(num_passes):
        positions, hashes = [], []
        for shard, start in enumerate(starts[:-1]):
            table = load(shard)
            mine = np.flatnonzero(table % np.uint64(num_passes) == number)
            positions.append(mine + start)
            hashes.append(table[mine])
        if not hashes:
            continue
        position, value = np.concatenate(positions), np.concatenate(hashes)
        order = np.argsort(value, kind="stable")
        same = value[order][1:] == value[order][:-1]
        is_duplicate[position[order[1:][same]]] = True
    return [is_duplicate[a:b] for a, b in itertools.pairwise(starts)]
