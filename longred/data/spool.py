"""Keeps blocks on their way to a bucket: appended per source, cut back after a crash, ordered."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from longred.artifacts import storage_errors
from longred.data.loader import DTYPES, Permutation, block_ends

COPY_BLOCKS = 1024


class Spool:
    """An append-only file in the work folder.

    Args:
        path: the file; its folder is created.
        size: bytes that are known to be whole; what was written after them is cut off.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("ab")
        self._file.truncate(size)

    def append(self, data: bytes) -> None:
        """Write bytes at the end."""
        self._file.write(data)

    def sync(self) -> int:
        """Force everything to disk and return the file's size in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SpoolFolder:
    """The spools of a preparation, opened when first written.

    Args:
        folder: where they lie.
        sizes: bytes of each that are known to be whole, as `sync` returned them.
    """

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        self.folder = folder
        self._sizes = dict(sizes)
        self._open: dict[str, Spool] = {}

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every spool."""
        for spool in self._open.values():
            spool.close()

    def append(self, name: str, data: bytes) -> None:
        """Write bytes at the end of the spool with this name."""
        if name not in self._open:
            self._open[name] = Spool(self.folder / name, self._sizes.get(name, 0))
        self._open[name].append(data)

    def sync(self) -> dict[str, int]:
        """Force everything to disk and return the size of every spool in bytes."""
        with storage_errors(self.folder):
            self._sizes.update({name: spool.sync() for name, spool in self._open.items()})
        return dict(self._sizes)

    def read(self, name: str) -> bytes:
        """Return what `sync` last saw of a spool."""
        path, size = self.folder / name, self._sizes.get(name, 0)
        return path.read_bytes()[:size] if size else b""


def gather(
    pieces: Sequence[tuple[SpoolFolder, str, int]],
    path: Path,
    *,
    block_length: int,
    dtype: str,
    seed: int,
    ends_path: Path | None = None,
) -> int:
    """Write the first blocks of several spools into one file, in a shuffled order.

    The order makes every prefix of the file a fair sample of its sources.

    Args:
        pieces: folder, spool name and number of blocks of each source.
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
    starts = np.cumsum([0, *(count for _, _, count in pieces)])
    total = int(starts[-1])
    sources = [_blocks(folder, name, count, block_length, dtype) for folder, name, count in pieces]
    ends = [_ends(folder, name) for folder, name, _ in pieces] if ends_path else []
    order = Permutation(max(1, total), seed=seed, bucket=f"layout/{path.name}", epoch=0)
    all_ends: list[npt.NDArray[np.uint64]] = [np.zeros(0, dtype=np.uint64)]
    with storage_errors(path), path.open("wb") as file:
        for first in range(0, total, COPY_BLOCKS):
            rows = np.empty((min(COPY_BLOCKS, total - first), block_length), DTYPES[dtype])
            for row in range(len(rows)):
                position = order[first + row]
                source = int(np.searchsorted(starts, position, side="right")) - 1
                block = position - int(starts[source])
                rows[row] = sources[source][block]
                if ends_path:
                    local = block_ends(ends[source], block, block_length)
                    all_ends.append(local + np.uint64((first + row) * block_length))
            file.write(rows.tobytes())
        file.flush()
        os.fsync(file.fileno())
        if ends_path:
            np.save(ends_path, np.concatenate(all_ends), allow_pickle=False)
    return total


def ends_name(name: str) -> str:
    """Return the name of the spool that holds the document ends of another one."""
    return name.removesuffix(".bin") + ".ends"


def _blocks(
    folder: SpoolFolder, name: str, count: int, block_length: int, dtype: str
) -> npt.NDArray[Any]:
    shape = (count, block_length)
    if not count:
        return np.zeros(shape, DTYPES[dtype])
    return np.memmap(folder.folder / name, dtype=DTYPES[dtype], mode="r", shape=shape)


def _ends(folder: SpoolFolder, name: str) -> npt.NDArray[np.uint64]:
    return np.frombuffer(folder.read(ends_name(name)), dtype="<u8").astype(np.uint64)
