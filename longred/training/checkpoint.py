"""What survives a crash: checkpoints written aside, hashed, renamed, and checked when read."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from longred.errors import MismatchError, PreflightError
from longred.store.artifacts import MANIFEST, sha256_file, storage_errors, sync_folder, write_json
from longred.training.tensor_files import Part, SavedTensors, groups_of, metadata_of
from longred.training.world import ALONE, World

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_PREFIX, _CORRUPT, _TEMPORARY = "step-", "corrupt-", ".tmp-"
_STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything a training needs to go on as if it had never stopped.

    Attributes:
        step: optimizer steps that are done.
        tensors: file stem (`model`, `optimizer`, `random`) → named tensors; to be saved, this
            process's part of them.
        parts: file stem → which part of its tensors this process saves; all by default.
        state: the rest as JSON: loader state, identity of the job, seconds, threads, versions.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    parts: Mapping[str, Part] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A checkpoint as it is read: its tensors stay on disk until they are asked for."""

    step: int
    tensors: Mapping[str, SavedTensors]
    state: Mapping[str, Any]


class Checkpoints:
    """The newest checkpoints of one training, `step-000020/` and so on.

    Several processes write one checkpoint together, in a folder that all of them see: each writes
    its own files, the first commits when all are on disk.

    Args:
        folder: where they are; made by the first `save`.
        keep: how many are kept.
        world: the processes that save and load together.
    """

    def __init__(self, folder: Path, *, keep: int, world: World = ALONE) -> None:
        self.folder = folder
        self.keep = keep
        self.world = world

    def save(self, checkpoint: Checkpoint) -> None:
        """Commit a checkpoint, then remove the oldest; a crash at any point leaves the older ones.

        Raises:
            StorageError: the disk is full or failing; the older checkpoints are intact.
        """
        name = f"{_PREFIX}{checkpoint.step:06d}"
        temporary, final = self.folder / f"{_TEMPORARY}{name}", self.folder / name
        with self.world.together(), storage_errors(final):
            if self.world.is_first:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
        files: dict[str, Any] = {}
        with self.world.together(), storage_errors(final):
            files = _write_files(temporary, checkpoint)
        for others in self.world.gather(files):
            files |= others
        with self.world.together(), storage_errors(final):
            if self.world.is_first:
                self._commit(temporary, final, checkpoint, files)

    def _commit(
        self, temporary: Path, final: Path, checkpoint: Checkpoint, files: dict[str, Any]
    ) -> None:
        state = temporary / _STATE
        write_json(state, {"format_version": FORMAT_VERSION, **checkpoint.state})
        files = {**files, _STATE: _entry(state)}
        write_json(temporary / MANIFEST, {"step": checkpoint.step, "files": files})
        if final.exists():
            # Only a damaged one can be here: a whole one would have been resumed from.
            self._quarantine(final, "it was about to be written again")
        temporary.rename(final)
        sync_folder(self.folder)
        for old in self._folders()[self.keep :]:
            shutil.rmtree(old)

    def newest(self) -> SavedCheckpoint | None:
        """Return the newest whole checkpoint, or None where none was ever saved.

        Leftovers of an unfinished save are removed; damaged checkpoints are renamed to `corrupt-…`
        and the one before is tried.

        Raises:
            MismatchError: checkpoints were saved and every one is damaged.
        """
        name = None
        with self.world.together():
            if self.world.is_first:
                name = self._newest_name()
        name = self.world.gather(name)[0]
        return None if name is None else self._load(self.folder / name)

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
                f"is not started over silently: delete {self.folder} to start from step 0"
            )
        return None

    def require_space(self, checkpoint_bytes: int, *, result_bytes: int) -> None:
        """Check that all checkpoints kept at once fit, before any step is spent.

        One more than `keep` exists while the oldest is not removed yet.

        Raises:
            PreflightError: they do not; the message gives both sizes.
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
        found = [
            p for p in self.folder.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit()
        ]
        return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)), reverse=True)

    def _load(self, folder: Path) -> SavedCheckpoint:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        if state.pop("format_version", None) != FORMAT_VERSION:
            raise MismatchError(
                f"{folder}: was written by another version; delete {self.folder} to start over"
            )
        return SavedCheckpoint(int(folder.name.removeprefix(_PREFIX)), groups_of(folder), state)

    def _quarantine(self, folder: Path, problem: str) -> None:
        target = next(
            path
            for path in _free_names(self.folder / f"{_CORRUPT}{folder.name}")
            if not path.exists()
        )
        log.warning(
            "checkpoint %s is damaged (%s); set aside as %s", folder.name, problem, target.name
        )
        folder.rename(target)
        sync_folder(self.folder)


def damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None where all match the manifest."""
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
    """Write this process's files of a checkpoint; return their manifest entries."""
    written = {}
    for stem, tensors in checkpoint.tensors.items():
        part = checkpoint.parts.get(stem, Part())
        if part.is_written:
            path = folder / part.file_name(stem)
            save_file(dict(tensors), path, metadata_of(part))
            _sync_file(path)
            written[path.name] = _entry(path)
    return written


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}


def _free_names(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name}.{number}")
        number += 1


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
