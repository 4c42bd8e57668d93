"""Fetches the tokens of a bucket from the shards and writes them, in an order that is a sample."""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.data.filling import SEGMENT
from longred.data.layout import DTYPES
from longred.store.artifacts import storage_errors

CHUNK_BYTES = 2**25


def write_bucket(
    pieces: Sequence[npt.NDArray[Any]],
    paths: Sequence[Path],
    path: Path,
    *,
    block_length: int,
    dtype: str,
    seed: int,
    ends_path: Path | None = None,
) -> int:
    """Write a bucket's file from the shards' token files, its blocks in a shuffled order.

    The order makes every stretch of the file a fair sample of its sources. Tokens are read by
    position and not mapped, so that memory stays small.

    Args:
        pieces: segments of each source, of dtype SEGMENT, blocks counted from 0 in each.
        paths: token file of each shard, as segments number them.
        path: the file to write.
        block_length: tokens of a block.
        dtype: `uint16` or `uint32`.
        seed: of the order.
        ends_path: where to write the positions at which documents end; without it, no file.

    Returns:
        The number of blocks written.

    Raises:
        StorageError: the disk is full.
    """
    segments, num_blocks = _shuffled(pieces, f"{seed}/{path.name}")
    itemsize = DTYPES[dtype].itemsize
    block_bytes = block_length * itemsize
    rows = max(1, CHUNK_BYTES // block_bytes)
    firsts = np.searchsorted(segments["block"], np.arange(0, num_blocks + rows, rows))
    buffer = memoryview(bytearray(rows * block_bytes))
    with storage_errors(path), path.open("wb") as file:
        for number, (first, last) in enumerate(itertools.pairwise(firsts)):
            part = segments[first:last]
            place = (part["block"] - np.uint32(number * rows)).astype(np.int64) * block_length
            _read(part, (place + part["at"]) * itemsize, itemsize, paths, buffer)
            filled = min(rows, num_blocks - number * rows) * block_bytes
            file.write(buffer[:filled])
        file.flush()
        os.fsync(file.fileno())
        if ends_path:
            ends = segments["block"].astype(np.uint64) * np.uint64(block_length)
            ends += (segments["at"] + segments["size"]).astype(np.uint64)
            np.save(ends_path, ends, allow_pickle=False)
    return num_blocks


def _shuffled(pieces: Sequence[npt.NDArray[Any]], key: str) -> tuple[npt.NDArray[Any], int]:
    """Return all segments, sorted by where they go: blocks of all sources in a random order."""
    counts = [int(part["block"][-1]) + 1 if len(part) else 0 for part in pieces]
    starts = np.cumsum([0, *counts])
    total = int(starts[-1])
    seed = int.from_bytes(hashlib.sha256(f"layout/{key}".encode()).digest()[:8], "little")
    # Raw output, since numpy keeps only that the same over its versions.
    place_of = np.argsort(np.random.Philox(seed).random_raw(total), kind="stable")
    joined = np.concatenate([np.zeros(0, dtype=SEGMENT), *pieces])
    first = np.repeat(starts[:-1], [len(part) for part in pieces])
    joined["block"] = place_of[joined["block"] + first]
    return joined[np.lexsort((joined["at"], joined["block"]))], total


def _read(
    segments: npt.NDArray[Any],
    targets: npt.NDArray[np.int64],
    itemsize: int,
    paths: Sequence[Path],
    buffer: memoryview,
) -> None:
    """Read segments to their places in a buffer, each shard's in one go."""
    order = np.lexsort((segments["start"], segments["shard"]))
    shards = segments["shard"][order].tolist()
    offsets = (segments["start"][order] * np.uint64(itemsize)).tolist()
    sizes = (segments["size"][order].astype(np.int64) * itemsize).tolist()
    places = targets[order].tolist()
    open_shard, descriptor = -1, -1
    with contextlib.ExitStack() as stack:
        for shard, offset, size, place in zip(shards, offsets, sizes, places, strict=True):
            if shard != open_shard:
                stack.close()
                descriptor = os.open(paths[shard], os.O_RDONLY)
                stack.callback(os.close, descriptor)
                open_shard = shard
            read = os.preadv(descriptor, [buffer[place : place + size]], offset)
            if read != size:
                raise RuntimeError(f"{paths[shard]}: {read} of {size} bytes at {offset}")
