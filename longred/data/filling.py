"""Assigns the documents of one source to buckets and packs blocks, by document lengths alone.

The result says which tokens of which shard each block consists of; `writing.py` copies them.
"""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.data.layout import SPLITS
from longred.data.quotas import Quota, draw

SEGMENT = np.dtype(
    [("block", "<u4"), ("at", "<u4"), ("shard", "<u4"), ("start", "<u8"), ("size", "<u4")]
)
"""Consecutive tokens of one document in a block: the block, the position in it, the shard, the
position in the shard's tokens, and the number of tokens."""

Piece = tuple[int, int, int]
"""Shard, position in its tokens, number of tokens."""


@dataclass(slots=True)
class Selection:
    """The blocks that a source can provide from what has been read.

    Attributes:
        blocks: (split, bucket) → number of blocks.
        segments: (split, bucket) → their segments, of dtype SEGMENT, blocks counted from 0.
        dropped: reason → tokens.
    """

    blocks: dict[tuple[str, str], int] = field(default_factory=dict)
    segments: dict[tuple[str, str], npt.NDArray[Any]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)


class Filler:
    """Assigns the documents of one source to buckets, shard after shard.

    Args:
        quotas: the blocks that the source has to provide; `written` and `pending` are updated.
        validation_fraction: share of documents that are held out.

    Attributes:
        num_documents: split → documents that were assigned to a bucket.
        num_duplicates: documents skipped because an earlier one has the same text.
    """

    def __init__(self, quotas: Sequence[Quota], validation_fraction: float) -> None:
        self.num_documents = dict.fromkeys(SPLITS, 0)
        self.num_duplicates = 0
        self._validation_fraction = validation_fraction
        self._splits = {split: _Split(split, quotas) for split in SPLITS}
        self._dropped: Counter[str] = Counter()

    def add(
        self, number: int, table: npt.NDArray[Any], is_duplicate: npt.NDArray[np.bool_]
    ) -> None:
        """Draw a bucket for each document of a shard, in the order of their ids.

        Args:
            number: the shard's number in the segments.
            table: of dtype `shards.TABLE`.
            is_duplicate: documents to skip.
        """
        self.num_duplicates += int(is_duplicate.sum())
        self._dropped["duplicate"] += int(table["length"][is_duplicate].sum())
        table = table[~is_duplicate]
        is_held_out = table["split"].astype(np.float64) / 2**64 < self._validation_fraction
        for split, mask in (("train", ~is_held_out), ("held_out", is_held_out)):
            rows = table[mask]
            self._splits[split].add(number, rows[np.argsort(rows["split"], kind="stable")])
            self.num_documents[split] = self._splits[split].num_documents

    def select(self) -> Selection:
        """Pack the waiting pieces and return all blocks; more shards may be added afterwards."""
        selection = Selection(dropped=self._dropped.copy())
        for split in self._splits.values():
            split.select(selection)
        return selection


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
        """Return one segment per block."""
        shard, start, count = np.array(self._values, dtype=np.int64).reshape(-1, 3).T
        result = np.zeros(self.num_blocks, dtype=SEGMENT)
        index_in_run = np.arange(self.num_blocks) - np.repeat(np.cumsum(count) - count, count)
        result["block"] = np.arange(self.num_blocks)
        result["shard"] = np.repeat(shard, count)
        result["start"] = np.repeat(start, count) + index_in_run * block_length
        result["size"] = block_length
        return result


class _Split:
    """The documents of one split.

    `_whole` are the blocks to write. `_spare` are further blocks of long documents, used when a
    bucket lacks documents. `_pieces` wait to be packed. `_late` are documents that no bucket needed
    when they were drawn; they fill what packing leaves open.
    """

    def __init__(self, split: str, quotas: Sequence[Quota]) -> None:
        self.quotas = [quota for quota in quotas if quota.split == split and quota.needed]
        self.num_documents = 0
        self._long = next((quota for quota in self.quotas if quota.bucket == "long"), None)
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

    def select(self, selection: Selection) -> None:
        """Add this split's blocks, segments and dropped tokens to a selection."""
        selection.dropped.update(self._dropped)
        for quota in self.quotas:
            select = self._select_packed if quota.bucket == "long" else self._select_single
            segments = select(quota, selection.dropped)
            key = (quota.split, quota.bucket)
            selection.segments[key] = segments
            selection.blocks[key] = int(segments["size"].sum(dtype=np.int64)) // quota.block_length

    def _place(self, quota: Quota, shard: int, start: int, length: int) -> None:
        """Take a document's whole blocks; the rest waits to be packed or is dropped."""
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
            # A block takes ceil(size / rest) pieces of this length and cuts the last one, whose end
            # fills nothing.
            quota.pending += size // -(-size // rest)
        else:
            self._dropped["rest"] += rest

    def _keep_late(self, document: Piece) -> None:
        """Keep a document that no bucket needs now, if it may be needed for packing."""
        quota, length = self._long, document[2]
        if (
            quota
            and length >= quota.minimum
            and self._late_tokens < quota.needed * quota.block_length
        ):
            self._late.append(document)
            self._late_tokens += length
        else:
            self._dropped["not_needed"] += length

    def _select_single(self, quota: Quota, dropped: Counter[str]) -> npt.NDArray[Any]:
        """Return blocks of one document each; spare blocks fill what is missing."""
        runs, taken, spare = self._whole[quota.bucket], _Runs(), self._spare[quota.bucket]
        missing = quota.needed - runs.num_blocks
        for shard, start, count in spare:
            if missing <= taken.num_blocks:
                break
            taken.add(shard, start, min(count, missing - taken.num_blocks))
        dropped["spare"] += (spare.num_blocks - taken.num_blocks) * quota.block_length
        return _joined(runs.segments(quota.block_length), taken.segments(quota.block_length))

    def _select_packed(self, quota: Quota, dropped: Counter[str]) -> npt.NDArray[Any]:
        """Return whole and packed blocks; late documents fill what packing leaves open."""
        runs, late, size = self._whole["long"], _Runs(), quota.block_length
        dropped["spare"] += self._spare["long"].num_blocks * size
        pieces, num_late = list(self._pieces), 0
        while True:
            missing = quota.needed - runs.num_blocks - late.num_blocks
            blocks = pack([piece[2] for piece in pieces], size, max(0, missing))
            lacking = (missing - len(blocks)) * size
            if lacking <= 0 or num_late == len(self._late):
                break
            while lacking > 0 and num_late < len(self._late):
                shard, start, length = self._late[num_late]
                num_late += 1
                whole = min(length // size, quota.needed - runs.num_blocks - late.num_blocks)
                late.add(shard, start, whole)
                rest = length - whole * size
                if quota.minimum <= rest < size:
                    pieces.append((shard, start + whole * size, rest))
                else:
                    dropped["rest"] += rest
                lacking -= length
        dropped["not_needed"] += sum(length for _, _, length in self._late[num_late:])
        rows: list[tuple[int, ...]] = []
        used = 0
        for block, parts in enumerate(blocks):
            at = 0
            for piece, length in parts:
                shard, start, available = pieces[piece]
                rows.append((block, at, shard, start, length))
                at += length
                used += available
        dropped["not_packed"] += sum(piece[2] for piece in pieces) - used
        dropped["cut"] += used - len(blocks) * size
        packed = np.array(rows, dtype=SEGMENT)
        return _joined(runs.segments(size), late.segments(size), packed)


def _joined(*segments: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Concatenate segments and renumber their blocks."""
    first = 0
    for part in segments:
        part["block"] += first
        first = int(part["block"][-1]) + 1 if len(part) else first
    return np.concatenate(segments)


def pack(lengths: Sequence[int], block_length: int, max_blocks: int) -> list[list[tuple[int, int]]]:
    """Pack pieces into full blocks: best fit, no padding, as few cuts as possible.

    The longest piece left opens a block, followed by the longest that fits. When none fits, the
    shortest is cut to fill the rest; its end is not used. A block that cannot be filled is not
    returned, and each piece is used at most once.

    Args:
        lengths: tokens of each piece, each in [1, block_length].
        block_length: tokens of a block.
        max_blocks: upper limit of the number of blocks.

    Returns:
        For each block, pairs of the index of a piece and the number of its first tokens to use.
    """
    order = sorted(range(len(lengths)), key=lambda piece: (lengths[piece], -piece))
    sizes = [lengths[piece] for piece in order]
    if sizes and not 1 <= sizes[0] <= sizes[-1] <= block_length:
        raise ValueError(f"pieces of {sizes[0]} to {sizes[-1]} tokens, blocks of {block_length}")
    left = sum(sizes)
    blocks: list[list[tuple[int, int]]] = []
    while len(blocks) < max_blocks and left >= block_length:
        block: list[tuple[int, int]] = []
        room = block_length
        while room:
            chosen = max(0, bisect_right(sizes, room) - 1)
            size, piece = sizes.pop(chosen), order.pop(chosen)
            left -= size
            block.append((piece, min(size, room)))
            room -= min(size, room)
        blocks.append(block)
    return blocks
