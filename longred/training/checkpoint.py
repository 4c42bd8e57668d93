"""Checkpoints that survive a crash: written aside, hashed, renamed, and verified when read.

Each process writes its own rows into files of its own, without a size limit. The size limit of the
files of a finished model is in `longred.models.load.save_model` and `longred.export.write`.

Why not `torch.distributed.checkpoint`: its default format keeps a pickle as metadata, and its
safetensors format (`HuggingFaceStorageWriter`) still exchanges pickled plans between processes and
serialises each file in host memory first. Two processes with 200 MB each needed 390 MB more
memory and 6.6 to 9.8 s a checkpoint without hashes, against 1 MB and 3.1 to 4.4 s here with them;
for an 8B model with Adam's moments that is a second 96 GB on the host. Neither format has what
resumption needs around the tensors: no hashes, no atomic commit of several files with the JSON
state, no fallback to an older checkpoint, no rotation. Both load in place only, so the optimizer
state must exist first, and both treat a plain tensor as identical in all processes, which random
states and 8-bit codes are not. `tensor_files` reads any split of rows in 50 lines.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from longred.errors import MismatchError, PreflightError
from longred.store.artifacts import MANIFEST, sha256_file, storage_errors, sync_folder, write_json
from longred.training.tensor_files import Part, SavedTensors, groups_of
from longred.training.world import ALONE, World

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_PREFIX, _CORRUPT, _TEMPORARY = "step-", "corrupt-", ".tmp-"
_STATE = "state.json"


class Checkpoint(NamedTuple):
    """Everything that a training needs to resume exactly.

    Attributes:
        step: number of finished optimizer steps.
        tensors: file stem (`model`, `optimizer`, `random`) → named tensors, only this process's
            part of them.
        state: the rest as JSON: loader state, identity of the job, seconds, threads, versions.
        parts: file stem → which part this process saves; all of it by default.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    parts: Mapping[str, Part] = {}


class SavedCheckpoint(NamedTuple):
    """A checkpoint on disk; its tensors are read on access."""

    step: int
    tensors: Mapping[str, SavedTensors]
    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The newest checkpoints of one training: `step-000020/` and so on.

    Several processes write one checkpoint together into a shared folder: each writes its own files,
    the first process commits when all are on disk.

    Args:
        folder: of the checkpoints; created by the first `save`.
        keep: number of checkpoints that are kept.
        world: the processes that save and load together.
    """

    folder: Path
    keep: int
    world: World = ALONE

    def save(self, checkpoint: Checkpoint) -> None:
        """Commit a checkpoint, then remove the oldest; a crash at any point leaves the older ones.

        Raises:
            StorageError: the disk is full or failing; the older checkpoints are intact.
        """
        final = self.folder / f"{_PREFIX}{checkpoint.step:06d}"
        temporary = self.folder / f"{_TEMPORARY}{final.name}"
        files: dict[str, Any] = {}

        def prepare() -> None:
            with storage_errors(final):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)

        def commit() -> None:
            with storage_errors(final):
                state = temporary / _STATE
                write_json(state, {"format_version": FORMAT_VERSION, **checkpoint.state})
                files[_STATE] = _entry(state)
                write_json(temporary / MANIFEST, {"step": checkpoint.step, "files": files})
                if final.exists():
                    # A whole one would have been resumed from, so this one is damaged.
                    self._quarantine(final, "its step is saved again")
                temporary.rename(final)
                sync_folder(self.folder)
                for old in self._folders()[self.keep :]:
                    shutil.rmtree(old)

        self.world.on_first(prepare)
        with self.world.together(), storage_errors(final):
            files = _write_files(temporary, checkpoint)
        for others in self.world.gather(files):
            files |= others
        self.world.on_first(commit)

    def newest(self) -> SavedCheckpoint | None:
        """Return the newest intact checkpoint, or None if none was ever saved.

        Remove the leftovers of an unfinished save; rename damaged checkpoints to `corrupt-…` and
        try the one before.

        Raises:
            MismatchError: every saved checkpoint is damaged.
        """
        name = self.world.on_first(self._newest_name)
        if name is None:
            return None
        folder = self.folder / name
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        if state.pop("format_version", None) != FORMAT_VERSION:
            raise MismatchError(
                f"{folder}: was written by another version; delete {self.folder} to start over"
            )
        return SavedCheckpoint(_step_of(folder), groups_of(folder), state)

    def _newest_name(self) -> str | None:
        if not self.folder.is_dir():
            return None
        for leftover in self.folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover)
        for folder in self._folders():
            problem = damage(folder)
            if problem is None:
                return folder.name
            self._quarantine(folder, problem)
        damaged = sorted(path.name for path in self.folder.glob(f"{_CORRUPT}*"))
        if damaged:
            raise MismatchError(
                f"{self.folder}: every checkpoint is damaged ({', '.join(damaged)}); the training "
                f"is not restarted silently: delete {self.folder} to start from step 0"
            )
        return None

    def require_space(self, checkpoint_bytes: int, *, result_bytes: int) -> None:
        """Check that all kept checkpoints will fit on the disk.

        One more than `keep` exists until the oldest is removed.

        Raises:
            PreflightError: they do not fit; the message gives both sizes.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        missing = max(1, self.keep + 1 - len(self._folders()))
        needed = missing * checkpoint_bytes + result_bytes
        if free < needed:
            raise PreflightError(
                f"{self.folder}: checkpoints and the result need {needed / 1e9:.2f} GB "
                f"and {free / 1e9:.2f} GB are free; free some space, or set store.path elsewhere"
            )

    def _folders(self) -> list[Path]:
        """Return the folders of checkpoints, newest first."""
        found = self.folder.glob(f"{_PREFIX}*")
        steps = (path for path in found if path.name.removeprefix(_PREFIX).isdigit())
        return sorted(steps, key=_step_of, reverse=True)

    def _quarantine(self, folder: Path, problem: str) -> None:
        target = self.folder / f"{_CORRUPT}{folder.name}"
        numbered = (target.with_name(f"{target.name}.{number}") for number in count(2))
        while target.exists():
            target = next(numbered)
        log.warning(
            "checkpoint %s is damaged (%s); renamed to %s", folder.name, problem, target.name
        )
        folder.rename(target)
        sync_folder(self.folder)


def damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None if all match the manifest."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, entry in files.items():
            path = folder / name
            if path.stat().st_size != entry["size_bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {entry['size_bytes']}"
            if sha256_file(path) != entry["sha256"]:
                return f"the bytes of {name} differ from the manifest"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def _write_files(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Write and flush this process's files; return their manifest entries."""
    written = {}
    for stem, tensors in checkpoint.tensors.items():
        part = checkpoint.parts.get(stem, Part())
        if part.is_written:
            path = folder / part.file_name(stem)
            save_file(dict(tensors), path, part.metadata())
            with path.open("rb") as file:
                os.fsync(file.fileno())
            written[path.name] = _entry(path)
    return written


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))
