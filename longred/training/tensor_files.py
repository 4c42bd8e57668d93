"""Named tensors in safetensors files, whole in one file or split by rows over several.

The metadata of a split file gives the rows that it holds, so any number of processes can read what
any other number wrote.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longred.errors import MismatchError
from longred.training.sharding import Rows

_PART = re.compile(r"-\d{5}-of-\d{5}\Z")


class Part(NamedTuple):
    """The part of a group of tensors that one process holds; the whole group by default.

    Attributes:
        number: of the part, from 0.
        num_parts: how many the group has.
        rows: of each tensor that is split by rows; other tensors exist once in every part.
        is_written: whether this process writes it; only one of the replicas does.
    """

    number: int = 0
    num_parts: int = 1
    rows: Mapping[str, Rows] = {}
    is_written: bool = True

    def file_name(self, stem: str) -> str:
        """Return the name of the part's file."""
        if self.num_parts == 1:
            return f"{stem}.safetensors"
        return f"{stem}-{self.number + 1:05d}-of-{self.num_parts:05d}.safetensors"

    def metadata(self) -> dict[str, str] | None:
        """Return the metadata of the part's file; None if its tensors are whole."""
        if self.num_parts == 1:
            return None
        return {"rows": json.dumps({name: [r.start, r.shape] for name, r in self.rows.items()})}


class SavedTensors(Mapping[str, Tensor]):
    """A group of tensors in its files, read on access.

    Args:
        paths: all files of the group.

    Attributes:
        number: part whose own tensors are read by name.
        ranges: first and last row + 1 to read by name; whole tensors by default.

    Raises:
        MismatchError: a file cannot be read.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = sorted(paths)
        self.number = 0
        self.ranges: Mapping[str, tuple[int, int]] = {}
        # Paths are sorted by part, so the rows of a split tensor are in order.
        self._parts: dict[str, list[tuple[Path, Rows | None]]] = {}
        for path in self.paths:
            with _opened(path) as file:
                split = json.loads((file.metadata() or {}).get("rows", "{}"))
                for name in file.keys():  # noqa: SIM118 - no mapping
                    rows = Rows(split[name][0], tuple(split[name][1])) if name in split else None
                    self._parts.setdefault(name, []).append((path, rows))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._parts)

    def __contains__(self, name: object) -> bool:
        """Return whether a tensor exists, without reading it."""
        return name in self._parts

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._parts)

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor: the rows in `ranges`, or all, or the own one of part `number`.

        If there are fewer parts than `number`, the last one's own tensor is read.
        """
        parts = self._parts[name]
        path, rows = parts[min(self.number, len(parts) - 1)]
        if name in self.ranges or rows is not None:
            return self.rows(name, *self.ranges.get(name, (0, self.shape(name)[0])))
        with _opened(path) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        path, rows = self._parts[name][0]
        if rows is not None:
            return rows.shape
        with _opened(path) as file:
            return tuple(file.get_slice(name).get_shape())

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read the rows from `start` to `stop` of a tensor, from all files that hold some."""
        pieces: list[Tensor] = []
        for path, rows in self._parts[name]:
            first = 0 if rows is None else rows.start
            with _opened(path) as file:
                saved = file.get_slice(name)
                low = max(start - first, 0)
                high = min(stop - first, saved.get_shape()[0])
                if low < high:
                    pieces.append(saved[low:high])
                elif not pieces:
                    pieces.append(saved[0:0])
            if rows is None:
                break
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; raise MismatchError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise MismatchError(f"{path}: cannot be read ({error})") from error


def groups_of(folder: Path) -> dict[str, SavedTensors]:
    """Return the groups of tensors in a folder by file stem.

    Raises:
        MismatchError: a file cannot be read.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in folder.glob("*.safetensors"):
        by_stem.setdefault(_PART.sub("", path.stem), []).append(path)
    return {stem: SavedTensors(paths) for stem, paths in sorted(by_stem.items())}
