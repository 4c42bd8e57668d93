"""Reads an exact number of blocks of each bucket per step, in a seeded and resumable order.

The order is computed, not stored: position p of a bucket is block
`Permutation(...)[p % num_blocks]` of epoch `p // num_blocks`. So the state is one number per
bucket, whatever the world size.

Shape suffixes: B rows of this rank, T tokens of a block.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longred.data.layout import BlockFile
from longred.errors import ConfigError, MismatchError

logger = logging.getLogger(__name__)

NUM_ROUNDS = 8
MASK_64 = 2**64 - 1


def read_rows(
    data_folder: Path, bucket: str, *, split: str = "train", num_tokens: int
) -> torch.Tensor:
    """Return the first blocks of a bucket, int64[N, T] with N * T <= `num_tokens` and N >= 1.

    Blocks are stored in a shuffled order, so the first ones are a fair sample. A bucket with fewer
    blocks is read completely, with a warning.

    Raises:
        MismatchError: the folder has no blocks of this bucket and split.
    """
    file = BlockFile(data_folder, bucket, split)
    wanted = max(1, num_tokens // file.block_length)
    if not len(file):
        raise MismatchError(f"{data_folder}: the {split} split of the {bucket} bucket is empty")
    if wanted > len(file):
        logger.warning("%s %s blocks: %d wanted, using all %d", split, bucket, wanted, len(file))
    return torch.from_numpy(np.stack([file[i] for i in range(min(wanted, len(file)))]))


class Permutation:
    """A pseudorandom bijection of range(size) in constant memory: a cycle-walking Feistel network.

    Args:
        size: number of blocks, at least 1.
        seed: the run's seed.
        bucket: each bucket has its own order.
        epoch: each epoch has its own order.

    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, section 3 (cycle walking).
    """

    def __init__(self, size: int, *, seed: int, bucket: str, epoch: int) -> None:
        if size < 1:
            raise ValueError(f"size: {size} is less than 1")
        self.size, self.epoch = size, epoch
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half_mask = (1 << self._half_bits) - 1
        material = hashlib.sha512(f"longred\0{seed}\0{bucket}\0{epoch}".encode()).digest()
        self._keys = [
            int.from_bytes(material[8 * i : 8 * i + 8], "little") for i in range(NUM_ROUNDS)
        ]

    def __getitem__(self, position: int) -> int:
        """Return the block at a position."""
        if not 0 <= position < self.size:
            raise IndexError(f"position {position} of {self.size}")
        value = self._encrypt(position)
        while value >= self.size:
            value = self._encrypt(value)
        return value

    def _encrypt(self, value: int) -> int:
        left, right = value >> self._half_bits, value & self._half_mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._half_mask)
        return (left << self._half_bits) | right


def _mix(value: int) -> int:
    """Mix the bits of a 64-bit number with the finaliser of SplitMix64."""
    value = (value + 0x9E3779B97F4A7C15) & MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK_64
    return value ^ (value >> 31)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one bucket that this rank trains on in one step.

    Attributes:
        input_ids_BT: int64 tokens.
        document_ids_BT: int32 document of each token, from 0 in every row; None if each row is one
            document.
        block_ids: block of each row.
        row_numbers: number of each row in the bucket, counted over all processes since step 1.
    """

    input_ids_BT: torch.Tensor
    document_ids_BT: torch.Tensor | None
    block_ids: list[int]
    row_numbers: list[int]


class StepLoader:
    """Reads exactly `rows` blocks of every bucket for each optimizer step, epoch after epoch.

    Args:
        data_folder: folder of a data artifact.
        rows: blocks of each bucket in one step, over all ranks.
        seed: the run's seed, which determines the order.
        rank: this process, from 0.
        world_size: number of processes; rank r reads rows r, r + world_size, … of a step.
        sequence_parallel: number of neighbouring ranks that read the same rows of the long bucket.

    Raises:
        ConfigError: a bucket is empty or its rows cannot be divided over the processes.
        MismatchError: the folder lacks a bucket.
    """

    def __init__(
        self,
        data_folder: Path,
        *,
        rows: Mapping[str, int],
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        sequence_parallel: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: {rank} of world_size {world_size}")
        self.rows = {bucket: count for bucket, count in rows.items() if count}
        self.seed = seed
        # Bucket → index of this process among the bucket's readers, and their number.
        self._readers = dict.fromkeys(self.rows, (rank, world_size))
        if "long" in self.rows:
            self._readers["long"] = (rank // sequence_parallel, world_size // sequence_parallel)
        self.files = {bucket: BlockFile(data_folder, bucket) for bucket in self.rows}
        for bucket, count in self.rows.items():
            num_readers = self._readers[bucket][1]
            if count < 0 or count % num_readers:
                raise ConfigError(
                    f"training.step_tokens: {count} rows of the {bucket} bucket a step cannot be "
                    f"divided over {num_readers} processes"
                )
            if not len(self.files[bucket]):
                raise ConfigError(f"data.num_tokens: the {bucket} bucket is empty")
        self._cursors = dict.fromkeys(self.rows, 0)
        self._orders: dict[str, Permutation] = {}

    def next_step(self) -> dict[str, Rows]:
        """Return this rank's rows of the next step and advance."""
        step: dict[str, Rows] = {}
        for bucket, count in self.rows.items():
            cursor = self._cursors[bucket]
            reader, num_readers = self._readers[bucket]
            positions = range(cursor + reader, cursor + count, num_readers)
            step[bucket] = self._read(bucket, positions)
            self._cursors[bucket] = cursor + count
        return step

    def state(self) -> dict[str, Any]:
        """Return the position as JSON values; they are the same on every rank.

        `cursors` counts the rows that all ranks together have read of each bucket since step 1.
        """
        return {
            "seed": self.seed,
            "cursors": dict(self._cursors),
            "num_blocks": {bucket: len(file) for bucket, file in self.files.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a position that `state` returned, with any world size.

        Raises:
            MismatchError: the state has another seed, other buckets or other block counts.
        """
        own = self.state()
        cursors = state.get("cursors", {})
        same = all(state.get(key) == own[key] for key in ("seed", "num_blocks"))
        if not same or set(cursors) != set(self.rows):
            raise MismatchError(
                f"the saved position in the data is {dict(state)}, but this run reads {own}; "
                "resume with the seed, the buckets and the data that it was saved with"
            )
        self._cursors = {bucket: int(cursors[bucket]) for bucket in self.rows}

    def _read(self, bucket: str, positions: range) -> Rows:
        file = self.files[bucket]
        blocks = [self._block(bucket, position) for position in positions]
        documents_BT = np.stack([file.document_ids(block) for block in blocks])
        return Rows(
            input_ids_BT=torch.from_numpy(np.stack([file[block] for block in blocks])),
            document_ids_BT=torch.from_numpy(documents_BT) if documents_BT.any() else None,
            block_ids=blocks,
            row_numbers=list(positions),
        )

    def _block(self, bucket: str, position: int) -> int:
        """Return the block at a position; cache the order of the present epoch."""
        size = len(self.files[bucket])
        epoch, offset = divmod(position, size)
        order = self._orders.get(bucket)
        if order is None or order.epoch != epoch:
            order = Permutation(size, seed=self.seed, bucket=bucket, epoch=epoch)
            self._orders[bucket] = order
        return order[offset]
