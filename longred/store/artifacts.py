"""Artifacts: digests, manifests, atomic commits and safe paths."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longred.errors import MismatchError, StorageError
from longred.store.locks import locked
from longred.store.locks import make_folder as make_folder
from longred.store.remote import MANIFEST as MANIFEST
from longred.store.remote import Remote

DIGEST_LENGTH = 16
_NAME = re.compile(r"[a-z][a-z0-9_-]*\Z")
_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


@dataclass(frozen=True, slots=True)
class Artifact:
    """A committed folder with a valid manifest, identified by its settings and inputs.

    Attributes:
        stage: stage that built it.
        digest: hash of the stage's settings, the digests of its inputs and the format version.
        path: absolute path of the folder.
        reused: True if it already existed.
    """

    stage: str
    digest: str
    path: str
    reused: bool = False

    @property
    def folder(self) -> Path:
        """The folder as a `Path`."""
        return Path(self.path)

    def read_json(self, name: str) -> Any:
        """Read one JSON file of the artifact.

        Raises:
            MismatchError: the file is missing or not JSON.
        """
        return read_json(self.folder / name)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        MismatchError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MismatchError(f"{path}: is missing") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MismatchError(f"{path}: is not valid JSON ({error})") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: a crash leaves either the old or the new content.

    Raises:
        StorageError: the disk is full or read-only.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, sort_keys=True, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)


def canonical_digest(value: Any) -> str:
    """Return the SHA-256 hex digest of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def existing_folder(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; rename it to `folder` once all of its content is on disk.

    Args:
        folder: final path; must not exist or be empty, unless `replace` is set.
        replace: delete an existing folder just before the rename.

    Raises:
        PreflightError: the parent folder cannot be created.
        StorageError: the disk is full; nothing is left behind.
    """
    make_folder(folder.parent)
    temporary = folder.with_name(f".tmp-{folder.name}")
    with storage_errors(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                else:
                    sync_folder(path)
            sync_folder(temporary)
            if replace and folder.exists():
                # A rename cannot replace a folder that is not empty.
                shutil.rmtree(folder)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(folder.parent)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn errors of a full or failing disk into a StorageError that names the path.

    safetensors reports a full disk with its own error type instead of OSError. That type is
    recognised by name, so that this module needs only the standard library.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError):
            is_storage = error.errno in _STORAGE_ERRNOS
        else:
            is_safetensors = type(error).__name__ == "SafetensorError"
            is_storage = is_safetensors and "os error" in str(error).lower()
        if not is_storage:
            raise
        raise StorageError(
            f"{path}: writing failed ({error}); finished work is intact, "
            "free some space and run the same command again"
        ) from error


class Store:
    """Artifacts, work in progress and run records under one root folder.

    Args:
        root: folder that holds `artifacts/`, `work/` and `runs/`; created by the first write.
        remote: second location of finished artifacts; they are fetched from it instead of rebuilt.

    Attributes:
        writes: whether anything may be written under the root.
        waits: whether `build` waits for another process that builds the same artifact.
    """

    writes = True
    waits = False

    def __init__(self, root: Path | str, remote: Remote | None = None) -> None:
        self.root = Path(root).expanduser().resolve()
        self.remote = remote
        self.artifacts = self.root / "artifacts"
        self.runs = self.root / "runs"

    def work(self, digest: str) -> Path:
        """Return the folder of the resumable progress of an uncommitted digest."""
        return self.root / "work" / digest

    def digest(
        self, stage: str, values: Mapping[str, Any], inputs: Mapping[str, str], version: int = 1
    ) -> str:
        """Return the digest of a stage with these settings and inputs."""
        return canonical_digest(artifact_identity(stage, values, inputs, version))[:DIGEST_LENGTH]

    def find(self, stage: str, digest: str) -> Artifact | None:
        """Return a committed artifact, or None if the folder is missing or incomplete.

        Only file sizes are compared with the manifest; `verify` also compares the bytes.
        """
        folder = self._folder(stage, digest)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            files: Mapping[str, Any] = manifest["files"]
            whole = all(
                (folder / name).stat().st_size == entry["size_bytes"]
                for name, entry in files.items()
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Artifact(stage, digest, str(folder), reused=True) if whole else None

    def is_remote(self, stage: str, digest: str) -> bool:
        """Return whether an artifact can be fetched.

        Raises:
            PreflightError: the remote cannot be reached.
        """
        return self.remote is not None and self.remote.has(self._folder(stage, digest).name)

    def verify(self, artifact: Artifact) -> None:
        """Compare every file of an artifact with its manifest.

        Raises:
            MismatchError: a file is missing or its bytes differ; the message names it.
        """
        for name, entry in artifact.read_json(MANIFEST)["files"].items():
            path = artifact.folder / name
            if not path.is_file() or sha256_file(path) != entry["sha256"]:
                raise MismatchError(
                    f"{path}: differs from its manifest; delete {artifact.path} to rebuild it"
                )

    def rebuilds(self, stage: str) -> bool:
        """Return whether `build` ignores existing artifacts of a stage."""
        return False

    def build(
        self,
        stage: str,
        values: Mapping[str, Any],
        inputs: Mapping[str, str],
        make: Callable[[Path, Path], None],
        version: int = 1,
    ) -> Artifact:
        """Return the artifact of these settings and inputs; build it only if it does not exist.

        An artifact that is rebuilt replaces the old one only when it is complete.

        Args:
            stage: name of the stage.
            values: settings that can change the result, as JSON values.
            inputs: name of each input → its digest.
            make: called with a temporary folder to fill and the work folder for resumable progress.
            version: format version of what `make` writes.

        Raises:
            LockedError: another process builds the same artifact, and `waits` is not set.
            StorageError: the disk is full, or the artifact could not be fetched or sent; the work
                folder keeps its progress.
            MismatchError: a fetched artifact differs from its manifest.
        """
        digest = self.digest(stage, values, inputs, version)
        rebuilds = self.rebuilds(stage)
        artifact = None if rebuilds else self.find(stage, digest)
        if artifact is None:
            work = self.work(digest)
            with locked(work / "lock", f"{stage}-{digest}", waits=self.waits):
                if not rebuilds:
                    # Another process may have committed it since.
                    artifact = self.find(stage, digest) or self._fetch(stage, digest)
                if artifact is None:
                    folder = self._folder(stage, digest)
                    with new_folder(folder, replace=True) as temporary:
                        make(temporary, work)
                        identity = artifact_identity(stage, values, inputs, version)
                        _write_manifest(temporary, {**identity, "digest": digest})
                    artifact = Artifact(stage, digest, str(folder))
                shutil.rmtree(work, ignore_errors=True)
        self._send(artifact)
        return artifact

    def _fetch(self, stage: str, digest: str) -> Artifact | None:
        """Fetch and verify an artifact if the remote has it."""
        if self.remote is None or not self.is_remote(stage, digest):
            return None
        folder = self._folder(stage, digest)
        with new_folder(folder, replace=True) as temporary:
            self.remote.fetch(folder.name, temporary)
            self.verify(Artifact(stage, digest, str(temporary)))
        return Artifact(stage, digest, str(folder), reused=True)

    def _send(self, artifact: Artifact) -> None:
        """Send an artifact to the remote if the remote lacks it."""
        if self.remote is None or not self.writes:
            return
        if not self.is_remote(artifact.stage, artifact.digest):
            self.remote.send(artifact.folder, artifact.read_json(MANIFEST)["files"])

    def _folder(self, stage: str, digest: str) -> Path:
        if not _NAME.match(stage) or not re.fullmatch(r"[0-9a-f]+", digest):
            raise ValueError(f"{stage}-{digest}: is not the name of an artifact")
        return self.artifacts / f"{stage}-{digest}"


def artifact_identity(
    stage: str, values: Mapping[str, Any], inputs: Mapping[str, str], version: int
) -> dict[str, Any]:
    """Return what the digest of an artifact is computed from; its manifest repeats it."""
    return {"stage": stage, "values": dict(values), "inputs": dict(inputs), "version": version}


def _write_manifest(folder: Path, identity: Mapping[str, Any]) -> None:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"{path}: an artifact holds plain files only")
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            files[name] = {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}
    write_json(folder / MANIFEST, {**identity, "files": files})


TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json")
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "chat_template*",
    *TOKENIZER_FILES,
)
"""Files that identify a model; model cards and files of other tools do not count."""


def folder_digest(
    folder: Path,
    patterns: Sequence[str] = MODEL_FILES,
    *,
    sha256: Callable[[Path], str] = sha256_file,
) -> str:
    """Return the digest of a folder outside the store.

    Args:
        folder: the folder.
        patterns: files whose names and bytes count.
        sha256: returns the SHA-256 of a file.
    """
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    files = {path.name: sha256(path) for path in found}
    return canonical_digest(files)[:DIGEST_LENGTH]
