"""Named tensors on disk, whole in one file or divided by rows over the files of several processes.

Each file says of its tensors which rows of the whole they are, so that any number of processes can
read what any other number wrote.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longred.errors import MismatchError
from longred.training.sharding import Rows

_PART = re.compile(r"-\d{5}-of-\d{5}\Z")


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of a group of tensors one process holds; all of it by default.

    Attributes:
        number: of the part, from 0.
        count: how many parts there are.
        rows: of each tensor that is divided by rows; the others of a part are its own.
        is_written: whether this process writes it; of equal parts one is written.
    """

    number: int = 0
    count: int = 1
    rows: Mapping[str, Rows] = field(default_factory=dict)
    is_written: bool = True

    def file_name(self, stem: str) -> str:
        """Return the name of the part's file."""
        if self.count == 1:
            return f"{stem}.safetensors"
        return f"{stem}-{self.number + 1:05d}-of-{self.count:05d}.safetensors"


def metadata_of(part: Part) -> dict[str, str] | None:
    """Return what a part's file says of its tensors; None where they are whole."""
    if part.count == 1:
        return None
    return {"rows": json.dumps({name: [r.start, r.shape] for name, r in part.rows.items()})}


class SavedTensors(Mapping[str, Tensor]):
    """A group of tensors as its files hold it, read when asked for, whole by its name.

    Args:
        paths: all files of the group.

    Raises:
        MismatchError: a file cannot be read.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = sorted(paths)
        self._rows: dict[str, list[tuple[Path, Rows]]] = {}
        self._own: dict[str, list[Path]] = {}
        for path in self.paths:
            with _opened(path) as file:
                metadata = file.metadata() or {}
                rows = json.loads(metadata.get("rows", "{}"))
                for name in file.keys():  # noqa: SIM118 - no mapping
                    if name in rows:
                        place = Rows(rows[name][0], tuple(rows[name][1]))
                        self._rows.setdefault(name, []).append((path, place))
                    else:
                        self._own.setdefault(name, []).append(path)

    def __iter__(self) -> Iterator[str]:
        """Return the names."""
        return iter((*self._rows, *self._own))

    def __contains__(self, name: object) -> bool:
        """Return whether there is a tensor of a name; nothing is read."""
        return name in self._rows or name in self._own

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._rows) + len(self._own)

    def __getitem__(self, name: str) -> Tensor:
        """Return a whole tensor; of those that each part has of its own, the first's."""
        if name in self._rows:
            return self.rows(name, 0, self.shape(name)[0])
        return self.own(name, 0)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        if name in self._rows:
            return self._rows[name][0][1].shape
        with _opened(self._own[name][0]) as file:
            return tuple(file.get_slice(name).get_shape())

    def own(self, name: str, number: int) -> Tensor:
        """Return what part `number` has by a name; the last part's, where there are fewer."""
        paths = self._own[name]
        with _opened(paths[min(number, len(paths) - 1)]) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return some rows of a tensor, whoever wrote them."""
        if name in self._own:
            with _opened(self._own[name][0]) as file:
                own: Tensor = file.get_slice(name)[start:stop]
            return own
        pieces = []
        for path, place in self._rows[name]:
            with _opened(path) as file:
                piece = file.get_slice(name)
                low = max(start - place.start, 0)
                high = min(stop - place.start, piece.get_shape()[0])
                if low < high:
                    pieces.append((place.start + low, piece[low:high]))
        pieces.sort(key=lambda piece: piece[0])
        if not pieces:
            return self._empty(name)
        return torch.cat([tensor for _, tensor in pieces])

    def _empty(self, name: str) -> Tensor:
        with _opened(self._rows[name][0][0]) as file:
            tensor: Tensor = file.get_slice(name)[0:0]
        return tensor


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file of tensors; its damage is told as a mismatch."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise MismatchError(f"{path}: cannot be read ({error})") from error


def groups_of(folder: Path) -> dict[str, SavedTensors]:
    """Return the groups of tensors in a folder, by the stems of their files' names.

    Raises:
        MismatchError: a file cannot be read.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in folder.glob("*.safetensors"):
        by_stem.setdefault(_PART.sub("", path.stem), []).append(path)
    return {stem: SavedTensors(paths) for stem, paths in sorted(by_stem.items())}
