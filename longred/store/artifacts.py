"""The one place that commits: digests, manifests, atomic renames, locks and safe paths."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longred.errors import LockedError, MismatchError, PreflightError, StorageError
from longred.store.remote import MANIFEST as MANIFEST
from longred.store.remote import Remote

DIGEST_LENGTH = 16
_NAME = re.compile(r"[a-z][a-z0-9_-]*\Z")
_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


@dataclass(frozen=True, slots=True)
class Artifact:
    """Finished work: a folder with a valid manifest, named by what it was made from.

    Attributes:
        stage: the stage that made it.
        digest: identity: hash of the stage's settings, its inputs' digests and the format version.
        path: absolute path of the folder.
        reused: whether it had been made before and was only found.
    """

    stage: str
    digest: str
    path: str
    reused: bool = False

    @property
    def folder(self) -> Path:
        """The folder as a path."""
        return Path(self.path)

    def read_json(self, name: str) -> Any:
        """Return the content of one JSON file of the artifact.

        Raises:
            MismatchError: the file is missing or not JSON.
        """
        return read_json(self.folder / name)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

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
    """Write a JSON file so that a crash leaves either the old or the new content.

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
    """Return the sha256 hex digest of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder of the store, with its parents, where it does not exist.

    Raises:
        PreflightError: the place cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreflightError(
            f"{folder}: cannot be made ({error.strerror}); set store.path to a folder of yours"
        ) from error


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_content(folder: Path) -> None:
    """Force everything in a folder to disk, before it gets its final name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder outside the store: it gets its name when all of it is on disk.

    Args:
        folder: must not exist, or be empty.

    Raises:
        PreflightError: the place cannot be written to.
        StorageError: the disk is full; nothing is left behind.
    """
    make_folder(folder.parent)
    temporary = folder.with_name(f".tmp-{folder.name}")
    with storage_errors(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            _sync_content(temporary)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(folder.parent)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full or failing disk into a StorageError that names the path.

    safetensors reports a full disk as its own error type and not as OSError; it is recognised by
    name so that this module needs nothing but the standard library.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE_ERRNOS:
            raise
        raise _storage_error(path, error) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError" or "os error" not in str(error).lower():
            raise
        raise _storage_error(path, error) from error


def _storage_error(path: Path, error: Exception) -> StorageError:
    return StorageError(
        f"{path}: writing failed ({error}); finished work is intact, "
        "free some space and run the same command again"
    )


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel frees it when the process ends, however it ends.

    Raises:
        LockedError: another process holds it.
    """
    make_folder(path.parent)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise LockedError(
                f"{what} is being made by {holder}; wait for it or stop it ({path})"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


class Store:
    """Artifacts, work in progress and run records under one root folder.

    Args:
        root: folder that holds `artifacts/`, `work/` and `runs/`; made when first written to.
        remote: where finished artifacts are kept too; what is there is fetched, not made.

    Attributes:
        writes: whether anything may be written under the root.
    """

    writes = True

    def __init__(self, root: Path | str, remote: Remote | None = None) -> None:
        self.root = Path(root).expanduser().resolve()
        self.remote = remote
        self.artifacts = self.root / "artifacts"
        self.runs = self.root / "runs"

    def work(self, digest: str) -> Path:
        """Return the folder that holds the resumable progress of an uncommitted digest."""
        return self.root / "work" / digest

    def digest(
        self, stage: str, values: Mapping[str, Any], inputs: Mapping[str, str], version: int = 1
    ) -> str:
        """Return the identity of what a stage makes from these settings and inputs."""
        identity = {
            "stage": stage,
            "values": dict(values),
            "inputs": dict(inputs),
            "version": version,
        }
        return canonical_digest(identity)[:DIGEST_LENGTH]

    def find(self, stage: str, digest: str) -> Artifact | None:
        """Return a committed artifact, or None where the folder is missing or not whole.

        File sizes are compared with the manifest; `verify` also compares their bytes.
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
            PreflightError: the remote place cannot be asked.
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
                    f"{path}: differs from its manifest; delete {artifact.path} to make it again"
                )

    def build(
        self,
        stage: str,
        values: Mapping[str, Any],
        inputs: Mapping[str, str],
        make: Callable[[Path, Path], None],
        version: int = 1,
        *,
        again: bool = False,
    ) -> Artifact:
        """Return the artifact of these settings and inputs, making it only where it does not exist.

        Args:
            stage: the stage's name.
            values: settings that can change the result, as JSON values.
            inputs: name of each input → its digest.
            make: called with a temporary folder to fill and the work folder for resumable progress.
            version: format version of what `make` writes.
            again: make it even where it exists; the old one stays until the new one is whole.

        Raises:
            LockedError: another process makes the same artifact.
            StorageError: the disk is full, or it could not be fetched or sent; progress in the work
                folder stays.
            MismatchError: what was fetched differs from its manifest.
        """
        digest = self.digest(stage, values, inputs, version)
        found = None if again else self.find(stage, digest)
        if found:
            self._send(found)
            return found
        work = self.work(digest)
        make_folder(work)
        make_folder(self.artifacts)
        with locked(work / "lock", f"{stage}-{digest}"):
            found = None if again else self.find(stage, digest) or self._fetch(stage, digest)
            if found is None:
                folder = self._folder(stage, digest)
                with self._new_folder(folder) as temporary:
                    make(temporary, work)
                    identity = {"values": dict(values), "inputs": dict(inputs), "version": version}
                    _write_manifest(temporary, {"stage": stage, "digest": digest, **identity})
            shutil.rmtree(work, ignore_errors=True)
        made = found or Artifact(stage, digest, str(folder))
        self._send(made)
        return made

    def _fetch(self, stage: str, digest: str) -> Artifact | None:
        """Take an artifact over from the remote place, if it is there."""
        if self.remote is None or not self.is_remote(stage, digest):
            return None
        folder = self._folder(stage, digest)
        with self._new_folder(folder) as temporary:
            self.remote.fetch(folder.name, temporary)
            self.verify(Artifact(stage, digest, str(temporary)))
        return Artifact(stage, digest, str(folder), reused=True)

    def _send(self, artifact: Artifact) -> None:
        """Send an artifact to the remote place, if there is one and it lacks it."""
        if self.remote is None or not self.writes:
            return
        if not self.is_remote(artifact.stage, artifact.digest):
            self.remote.send(artifact.folder, artifact.read_json(MANIFEST)["files"])

    def _folder(self, stage: str, digest: str) -> Path:
        if not _NAME.match(stage) or not re.fullmatch(r"[0-9a-f]+", digest):
            raise ValueError(f"{stage}-{digest}: is not the name of an artifact")
        return self.artifacts / f"{stage}-{digest}"

    @contextlib.contextmanager
    def _new_folder(self, folder: Path) -> Iterator[Path]:
        """Yield a temporary folder; what was put into it, flushed to disk, gets the final name."""
        temporary = self.artifacts / f".tmp-{folder.name}"
        with storage_errors(folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            _sync_content(temporary)
            if folder.exists():
                # os.replace cannot replace a folder that is not empty.
                shutil.rmtree(folder)
            temporary.replace(folder)
            sync_folder(folder.parent)


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
"""What makes a model the one it is; cards and other tools' files in its folder do not."""


def folder_digest(
    folder: Path,
    patterns: Sequence[str] = MODEL_FILES,
    *,
    sha256: Callable[[Path], str] = sha256_file,
) -> str:
    """Return the identity of a folder outside the store.

    Args:
        folder: the folder.
        patterns: the files in it whose names and bytes count.
        sha256: returns the digest of a file's bytes.
    """
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    files = {path.name: sha256(path) for path in found}
    return canonical_digest(files)[:DIGEST_LENGTH]
