"""Reads an exact number of blocks of each bucket per step, in a seeded order, resumable from JSON.

Order is computed, not stored: position p of a bucket is block `Permutation(...)[p % num_blocks]` of
epoch `p // num_blocks`. So the whole state is one number a bucket, whatever the world size.

Shape suffixes: B rows of this rank, T tokens of a block.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from longred.data.layout import DTYPES, FORMAT_VERSION
from longred.errors import ConfigError, MismatchError

logger = logging.getLogger(__name__)

NUM_ROUNDS = 8
MASK_64 = 2**64 - 1


def read_index(data_folder: Path) -> dict[str, Any]:
    """Return the index of a data folder.

    Raises:
        MismatchError: there is no index, it cannot be read, or its format is another one.
    """
    path = data_folder / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise MismatchError(f"{path}: no such file; {data_folder} is not a data folder") from None
    except ValueError as error:
        raise MismatchError(f"{path}: cannot be read ({error}); prepare the data again") from error
    found = index.get("format_version") if isinstance(index, dict) else None
    if found != FORMAT_VERSION:
        raise MismatchError(
            f"{path}: format_version is {found}, this program reads {FORMAT_VERSION}; "
            "prepare the data again"
        )
    return index  # type: ignore[no-any-return]


class BlockFile:
    """The blocks of one bucket and split, memory-mapped.

    Args:
        data_folder: folder of a data artifact.
        bucket: `long`, `short` or `original`.
        split: `train` or `held_out`.

    Attributes:
        block_length: tokens of a block.

    Raises:
        MismatchError: the bucket is not in the index, or its file has another size than recorded.
    """

    def __init__(self, data_folder: Path, bucket: str, split: str = "train") -> None:
        data_folder = Path(data_folder)
        entries = read_index(data_folder).get(split, {})
        if bucket not in entries:
            raise MismatchError(f"{data_folder}: has no {split} blocks of the {bucket} bucket")
        entry = entries[bucket]
        self.path = data_folder / entry["file"]
        self.block_length = int(entry["block_length"])
        self._num_blocks = int(entry["num_blocks"])
        dtype = DTYPES[entry["dtype"]]
        shape = (self._num_blocks, self.block_length)
        expected = self._num_blocks * self.block_length * dtype.itemsize
        found = self.path.stat().st_size if self.path.is_file() else -1
        if found != expected:
            raise MismatchError(
                f"{self.path}: {'missing' if found < 0 else f'{found} bytes'}, "
                f"{expected} bytes recorded; prepare the data again"
            )
        self._tokens: npt.NDArray[Any] = (
            np.memmap(self.path, dtype=dtype, mode="r", shape=shape)
            if self._num_blocks
            else np.zeros(shape, dtype)
        )
        self._ends: npt.NDArray[np.uint64] | None = None
        if "ends" in entry and self._num_blocks:
            self._ends = np.load(data_folder / entry["ends"], mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        """Return the number of blocks."""
        return self._num_blocks

    def __getitem__(self, block: int) -> npt.NDArray[np.int64]:
        """Return the tokens of a block, int64[T]."""
        self._check(block)
        tokens: npt.NDArray[np.int64] = self._tokens[block].astype(np.int64)
        return tokens

    def document_ends(self, block: int) -> npt.NDArray[np.int64]:
        """Return where the documents of a block end, increasing; the last one is T."""
        self._check(block)
        if self._ends is None:
            return np.array([self.block_length], dtype=np.int64)
        return block_ends(self._ends, block, self.block_length).astype(np.int64)

    def document_ids(self, block: int) -> npt.NDArray[np.int32]:
        """Return which document of the block each token belongs to, int32[T] counted from 0."""
        ends = self.document_ends(block)
        lengths = np.diff(ends, prepend=0)
        return np.repeat(np.arange(len(ends), dtype=np.int32), lengths)

    def _check(self, block: int) -> None:
        if not 0 <= block < self._num_blocks:
            raise IndexError(f"{self.path}: block {block} of {self._num_blocks}")


def read_rows(
    data_folder: Path, bucket: str, *, split: str = "train", num_tokens: int
) -> torch.Tensor:
    """Return the first blocks of a bucket, int64[N, T] with N * T of at most `num_tokens` tokens.

    Blocks lie in a shuffled order, so that the first ones are a fair sample. At least one is
    returned; fewer than asked when the bucket has fewer, which is logged.

    Raises:
        MismatchError: the folder has no blocks of this bucket and split.
    """
    file = BlockFile(data_folder, bucket, split)
    wanted = max(1, num_tokens // file.block_length)
    if not len(file):
        raise MismatchError(f"{data_folder}: the {split} split of the {bucket} bucket is empty")
    if wanted > len(file):
        logger.warning(
            "%s %s blocks: %d wanted, going on with %d", split, bucket, wanted, len(file)
        )
    return torch.from_numpy(np.stack([file[i] for i in range(min(wanted, len(file)))]))


def block_ends(
    ends: npt.NDArray[np.uint64], block: int, block_length: int
) -> npt.NDArray[np.uint64]:
    """Return where documents end inside one block, given the ends of all of them, increasing."""
    start = block * block_length
    bounds = np.array([start, start + block_length], dtype=np.uint64)
    first, last = np.searchsorted(ends, bounds, side="right")
    return np.asarray(ends[first:last] - np.uint64(start), dtype=np.uint64)


class Permutation:
    """A bijection of range(size) that takes no memory: a Feistel network, walked until in range.

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
        self.size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half_mask = (1 << self._half_bits) - 1
        material = hashlib.sha512(f"longred\0{seed}\0{bucket}\0{epoch}".encode()).digest()
        self._keys = [
            int.from_bytes(material[8 * i : 8 * i + 8], "little") for i in range(NUM_ROUNDS)
        ]

    def __len__(self) -> int:
        """Return the number of blocks."""
        return self.size

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
    """Return a well mixed 64-bit number (the finaliser of SplitMix64)."""
    value = (value + 0x9E3779B97F4A7C15) & MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK_64
    return value ^ (value >> 31)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one bucket that this rank trains on in one step.

    Attributes:
        input_ids_BT: int64 tokens.
        document_ids_BT: int32 document of each token, from 0 in every row; None when every row is
            one document.
        block_ids: which blocks the rows are.
        row_numbers: which rows of the bucket they are, counted over all processes since step 1.
    """

    input_ids_BT: torch.Tensor
    document_ids_BT: torch.Tensor | None
    block_ids: list[int]
    row_numbers: list[int]


class StepLoader:
    """Gives each optimizer step exactly `rows` blocks of every bucket, epoch after epoch.

    Args:
        data_folder: folder of a data artifact.
        rows: blocks of each bucket in one step, all ranks together.
        seed: the run's seed; another seed is another order.
        rank: this process, from 0.
        world_size: number of processes; rank r reads rows r, r + world_size, … of a step.
        sequence_parallel: how many neighbouring ranks read the same rows of the long bucket.

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
        # Of each bucket: which reader this process is, and of how many.
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
        self._orders: dict[str, tuple[int, Permutation]] = {}

    def next_step(self) -> dict[str, Rows]:
        """Return this rank's rows of the next step and move on."""
        step: dict[str, Rows] = {}
        for bucket, count in self.rows.items():
            cursor = self._cursors[bucket]
            reader, num_readers = self._readers[bucket]
            positions = range(cursor + reader, cursor + count, num_readers)
            step[bucket] = self._read(bucket, positions)
            self._cursors[bucket] = cursor + count
        return step

    def state(self) -> dict[str, Any]:
        """Return the position as JSON values; the same on every rank.

        `cursors` counts the rows that all ranks have read of each bucket since the first epoch.
        """
        return {
            "seed": self.seed,
            "cursors": dict(self._cursors),
            "num_blocks": {bucket: len(file) for bucket, file in self.files.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go to a position that `state` returned, whatever the world size was.

        Raises:
            MismatchError: the state has another seed, other buckets or other block counts.
        """
        own = self.state()
        cursors = state.get("cursors", {})
        same = all(state.get(key) == own[key] for key in ("seed", "num_blocks"))
        if not same or set(cursors) != set(self.rows):
            raise MismatchError(
                f"the saved position in the data is {dict(state)}, but this run reads {own}; "
                "go on with the seed, the buckets and the data that it was saved with"
            )
        self._cursors = {bucket: int(cursors[bucket]) for bucket in self.rows}

    def _block(self, bucket: str, position: int) -> int:
        epoch, offset = divmod(position, len(self.files[bucket]))
        if bucket not in self._orders or self._orders[bucket][0] != epoch:
            size = len(self.files[bucket])
            order = Permutation(size, seed=self.seed, bucket=bucket, epoch=epoch)
            self._orders[bucket] = (epoch, order)
        return self._orders[bucket][1][offset]

    def _read(self, bucket: str, positions: range) -> Rows:
        file = self.files[bucket]
        blocks = [self._block(bucket, position) for position in positions]
        input_ids_BT = torch.from_numpy(np.stack([file[block] for block in blocks]))
        documents_BT = np.stack([file.document_ids(block) for block in blocks])
        single = not documents_BT.any()
        return Rows(
            input_ids_BT=input_ids_BT,
            document_ids_BT=None if single else torch.from_numpy(documents_BT),
            block_ids=blocks,
            row_numbers=list(positions),
        )
