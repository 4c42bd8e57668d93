"""The format of a data folder: its constants, its index and its blocks.

This module needs numpy alone, so that neither the writer loads torch nor the trainer pydantic.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.errors import MismatchError

FORMAT_VERSION = 1
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
SPLITS = ("train", "held_out")
FOLDERS = {"train": "tokens", "held_out": "held_out"}
"""Split → folder of its blocks."""


def read_index(data_folder: Path) -> dict[str, Any]:
    """Return the index of a data folder.

    Raises:
        MismatchError: the index is missing, unreadable or of another format version.
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
        MismatchError: the index has no such bucket, or the file size differs from the index.
    """

    def __init__(self, data_folder: Path, bucket: str, split: str = "train") -> None:
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
        # An empty file cannot be memory-mapped.
        self._tokens: npt.NDArray[Any] = np.zeros(shape, dtype)
        self._ends: npt.NDArray[np.uint64] | None = None
        if self._num_blocks:
            self._tokens = np.memmap(self.path, dtype=dtype, mode="r", shape=shape)
            if "ends" in entry:
                ends_path = data_folder / entry["ends"]
                self._ends = np.load(ends_path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        """Return the number of blocks."""
        return self._num_blocks

    def __getitem__(self, block: int) -> npt.NDArray[np.int64]:
        """Return the tokens of a block, int64[T]."""
        self._check(block)
        tokens: npt.NDArray[np.int64] = self._tokens[block].astype(np.int64)
        return tokens

    def document_ends(self, block: int) -> npt.NDArray[np.int64]:
        """Return the positions at which the documents of a block end, ascending; the last is T."""
        self._check(block)
        if self._ends is None:
            return np.array([self.block_length], dtype=np.int64)
        start = block * self.block_length
        bounds = np.array([start, start + self.block_length], dtype=np.uint64)
        first, last = np.searchsorted(self._ends, bounds, side="right")
        return (self._ends[first:last] - np.uint64(start)).astype(np.int64)

    def document_ids(self, block: int) -> npt.NDArray[np.int32]:
        """Return the index, within the block, of the document of each token, int32[T]."""
        ends = self.document_ends(block)
        lengths = np.diff(ends, prepend=0)
        return np.repeat(np.arange(len(ends), dtype=np.int32), lengths)

    def _check(self, block: int) -> None:
        if not 0 <= block < self._num_blocks:
            raise IndexError(f"{self.path}: block {block} of {self._num_blocks}")
