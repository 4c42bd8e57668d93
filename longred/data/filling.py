"""Divides one source's documents over its buckets, by their lengths alone; no token is touched.

The result says where each block's tokens stand in the shards; `copying.py` fetches them.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.data.layout import SPLITS
from longred.data.packing import pack
from longred.data.quotas import Quota, draw

SEGMENT = np.dtype(
    [("block", "<u4"), ("at", "<u4"), ("shard", "<u4"), ("start", "<u8"), ("size", "<u4")]
)
"""A stretch of one document in a block: block, position in it, shard, position there, tokens."""

Piece = tuple[int, int, int]
"""Shard, position in its tokens, number of tokens."""


@dataclass(slots=True)
class Settled:
    """What a source gives when nothing more is read.

    Attributes:
        blocks: (split, bucket) → blocks that can be written.
        segments: (split, bucket) → their stretches, of dtype SEGMENT, blocks counted from 0.
        dropped: reason → tokens.
    """

    blocks: dict[tuple[str, str], int] = field(default_factory=dict)
    segments: dict[tuple[str, str], npt.NDArray[Any]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)


class _Runs:
    """Runs of whole blocks: shard, first token, number of blocks."""

    def __init__(self) -> None:
        self._values = array("Q")
        self.num_blocks = 0

    def add(self, shard: int, start: int, count: int) -> None:
        if count:
            self._values.extend((shard, start, count))
            self.num_blocks += count

    def __iter__(self) -> Iterator[Piece]:
        values = iter(self._values)
        return zip(values, values, values, strict=True)

    def segments(self, block_length: int) -> npt.NDArray[Any]:
        """Return one segment a block."""
        shard, start, count = np.array(self._values, dtype=np.int64).reshape(-1, 3).T
        result = np.zeros(self.num_blocks, dtype=SEGMENT)
        inside = np.arange(self.num_blocks) - np.repeat(np.cumsum(count) - count, count)
        result["block"] = np.arange(self.num_blocks)
        result["shard"] = np.repeat(shard, count)
        result["start"] = np.repeat(start, count) + inside * block_length
        result["size"] = block_length
        return result


class Filler:
    """One source's documents on their way into the buckets, shard after shard.

    Args:
        quotas: what the source owes each bucket of both splits; `written` and `pending` follow.
        validation_fraction: share of documents that are held out.

    Attributes:
        num_documents: split → documents that were drawn for a bucket.
        num_duplicates: documents left out because an earlier one has the same text.
    """

    def __init__(self, quotas: Sequence[Quota], validation_fraction: float) -> None:
        self.quotas = quotas
        self.num_documents = dict.fromkeys(SPLITS, 0)
        self.num_duplicates = 0
        self._bound = validation_fraction
        self._splits = {split: _Split(split, quotas) for split in SPLITS}
        self._dropped: Counter[str] = Counter()

    def add(
        self, number: int, table: npt.NDArray[Any], is_duplicate: npt.NDArray[np.bool_]
    ) -> None:
        """Draw a bucket for each document of a shard, in the order of their ids.

        Args:
            number: the shard's number, as segments will name it.
            table: of dtype `shards.TABLE`.
            is_duplicate: documents to leave out.
        """
        self.num_duplicates += int(is_duplicate.sum())
        self._dropped["duplicate"] += int(table["length"][is_duplicate].sum())
        table = table[~is_duplicate]
        is_held_out = table["split"].astype(np.float64) / 2**64 < self._bound
        for split, mask in (("train", ~is_held_out), ("held_out", is_held_out)):
            rows = table[mask]
            self._splits[split].add(number, rows[np.argsort(rows["split"], kind="stable")])
            self.num_documents[split] = self._splits[split].num_documents

    def settle(self) -> Settled:
        """Pack what waits and say what comes out; more shards may be added afterwards."""
        result = Settled(dropped=self._dropped.copy())
        for split in self._splits.values():
            split.settle(result)
        return result


class _Split:
    """The documents of one split."""

    def __init__(self, split: str, quotas: Sequence[Quota]) -> None:
        self.quotas = [quota for quota in quotas if quota.split == split and quota.needed]
        self.num_documents = 0
        self._whole = {quota.bucket: _Runs() for quota in self.quotas}
        self._spare = {quota.bucket: _Runs() for quota in self.quotas}
        self._pieces: list[Piece] = []
        self._late: list[Piece] = []
        self._late_tokens = 0
        self._dropped: Counter[str] = Counter()

    def add(self, number: int, rows: npt.NDArray[Any]) -> None:
        lengths = rows["length"]
        for quota in self.quotas:
            quota.available += int(lengths[lengths >= quota.minimum].sum(dtype=np.int64))
        least = min((quota.minimum for quota in self.quotas), default=2**32)
        usable = rows[lengths >= least]
        self._dropped["too_short"] += int(lengths[lengths < least].sum(dtype=np.int64))
        columns = (usable[name].tolist() for name in ("draw", "start", "length"))
        for word, start, length in zip(*columns, strict=True):
            drawn = draw(word, length, self.quotas)
            if drawn is None:
                self._keep_late((number, start, length))
            else:
                self._place(drawn, number, start, length)

    def settle(self, result: Settled) -> None:
        dropped = self._dropped.copy()
        for quota in self.quotas:
            runs = self._whole[quota.bucket]
            if quota.bucket == "long":
                settled = self._settle_long(quota, runs, dropped)
            else:
                settled = self._settle_single(quota, runs, dropped)
            key = (quota.split, quota.bucket)
            result.segments[key] = settled
            result.blocks[key] = int(settled["size"].sum(dtype=np.int64)) // quota.block_length
        if not any(quota.bucket == "long" for quota in self.quotas):
            dropped["not_needed"] += self._late_tokens
        result.dropped.update(dropped)

    def _place(self, quota: Quota, shard: int, start: int, length: int) -> None:
        """Take a document's whole blocks for a bucket; what remains waits or is dropped."""
        self.num_documents += 1
        size = quota.block_length
        whole = length // size
        first = min(whole, quota.blocks_per_document, -(-quota.remaining // size))
        self._whole[quota.bucket].add(shard, start, first)
        self._spare[quota.bucket].add(shard, start + first * size, whole - first)
        quota.written += first
        rest = length - whole * size
        if quota.bucket == "long" and quota.remaining and rest >= quota.minimum:
            self._pieces.append((shard, start + whole * size, rest))
            # Of equal pieces a block takes so many, the last one cut; the cut end fills nothing.
            quota.pending += size // -(-size // rest)
        else:
            self._dropped["rest"] += rest

    def _keep_late(self, document: Piece) -> None:
        """Keep a document that nobody needs, for what packing may still lack."""
        long = next((quota for quota in self.quotas if quota.bucket == "long"), None)
        if (
            long
            and document[2] >= long.minimum
            and self._late_tokens < long.needed * long.block_length
        ):
            self._late.append(document)
            self._late_tokens += document[2]
        else:
            self._dropped["not_needed"] += document[2]

    def _settle_single(self, quota: Quota, runs: _Runs, dropped: Counter[str]) -> npt.NDArray[Any]:
        """Fill what is missing from the spare blocks of long documents."""
        taken, missing = _Runs(), quota.needed - runs.num_blocks
        spare = self._spare[quota.bucket]
        for shard, start, count in spare:
            if missing <= taken.num_blocks:
                break
            taken.add(shard, start, min(count, missing - taken.num_blocks))
        dropped["spare"] += (spare.num_blocks - taken.num_blocks) * quota.block_length
        return _joined(runs.segments(quota.block_length), taken.segments(quota.block_length))

    def _settle_long(self, quota: Quota, runs: _Runs, dropped: Counter[str]) -> npt.NDArray[Any]:
        """Pack the pieces; documents nobody needed fill what packing leaves open."""
        size = quota.block_length
        dropped["spare"] += self._spare["long"].num_blocks * size
        pieces, late, used_late = list(self._pieces), _Runs(), 0
        while True:
            missing = quota.needed - runs.num_blocks - late.num_blocks
            blocks = pack([piece[2] for piece in pieces], size, max(0, missing))
            lacking = (missing - len(blocks)) * size
            if lacking <= 0 or used_late == len(self._late):
                break
            while lacking > 0 and used_late < len(self._late):
                shard, start, length = self._late[used_late]
                used_late += 1
                whole = min(length // size, quota.needed - runs.num_blocks - late.num_blocks)
                late.add(shard, start, whole)
                rest = length - whole * size
                if quota.minimum <= rest < size:
                    pieces.append((shard, start + whole * size, rest))
                else:
                    dropped["rest"] += rest
                lacking -= length
        dropped["not_needed"] += sum(length for _, _, length in self._late[used_late:])
        packed = np.array(
            [
                (block, at, *pieces[piece][:2], length)
                for block, parts in enumerate(blocks)
                for at, (piece, length) in _placed(parts)
            ],
            dtype=SEGMENT,
        )
        total = sum(piece[2] for piece in pieces)
        used = sum(pieces[piece][2] for parts in blocks for piece, _ in parts)
        dropped["not_packed"] += total - used
        dropped["cut"] += used - len(blocks) * size
        return _joined(runs.segments(size), late.segments(size), packed)


def _placed(parts: Sequence[tuple[int, int]]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield each part of a block with the position it begins at."""
    at = 0
    for part in parts:
        yield at, part
        at += part[1]


def _joined(*segments: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return segments one behind the other, their blocks counted on."""
    first = 0
    for part in segments:
        part["block"] += first
        first = int(part["block"][-1]) + 1 if len(part) else first
    return np.concatenate(segments)
