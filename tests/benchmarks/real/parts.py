"""Pack files into parts of limited size, with their hashes, and join them elsewhere."""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from longred.store.artifacts import sha256_file

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
MAX_PART_BYTES = 60 * 10**6
_BUFFER = 2**20


class PartsError(Exception):
    """Parts are missing or differ from the manifest; the message names them."""


class _PartWriter:
    """A file that is written as parts of at most `part_bytes`; each is hashed on the way."""

    def __init__(self, folder: Path, part_bytes: int) -> None:
        self.folder, self.part_bytes = folder, part_bytes
        self.parts: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        while left:
            if self._file is None:
                self._file = (self.folder / f"part-{len(self.parts):03}").open("wb")
                self._hash, self._size = hashlib.sha256(), 0
            piece = left[: self.part_bytes - self._size]
            self._file.write(piece)
            self._hash.update(piece)
            self._size += len(piece)
            left = left[len(piece) :]
            if self._size == self.part_bytes:
                self.close()
        return len(data)

    def close(self) -> None:
        if self._file is not None:
            name = Path(self._file.name).name
            self._file.close()
            self._file = None
            entry = {"name": name, "bytes": self._size, "sha256": self._hash.hexdigest()}
            self.parts.append(entry)


def pack(
    files: Mapping[str, Path], folder: Path, values: Mapping[str, Any], *, part_bytes: int
) -> Path:
    """Write files as parts; return the manifest, which is written last.

    Args:
        files: relative path after joining -> file.
        folder: receives `part-000`, `part-001`, …; older parts in it are removed.
        values: further values of the manifest.
        part_bytes: size of a part, at most MAX_PART_BYTES.
    """
    if not 0 < part_bytes <= MAX_PART_BYTES:
        raise PartsError(f"a part may have 1 to {MAX_PART_BYTES:,} bytes, not {part_bytes:,}")
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("part-*"), folder / MANIFEST):
        old.unlink(missing_ok=True)
    writer = _PartWriter(folder, part_bytes)
    # A plain archive: weights and tokens hardly shrink.
    with tarfile.open(fileobj=writer, mode="w|", bufsize=_BUFFER) as archive:
        for name, path in sorted(files.items()):
            entry = archive.gettarinfo(path, name)
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
            with path.open("rb") as file:
                archive.addfile(entry, file)
    writer.close()
    manifest = folder / MANIFEST
    content = {"format_version": FORMAT_VERSION, "parts": writer.parts, **values}
    manifest.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a prepared folder.

    Raises:
        PartsError: it is missing or of another format.
    """
    path = folder / MANIFEST
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PartsError(f"{path} is missing: give a folder that `prepare` wrote") from None
    except ValueError as error:
        raise PartsError(f"{path} cannot be read ({error}); copy it again") from error
    if found.get("format_version") != FORMAT_VERSION:
        raise PartsError(
            f"{path}: format_version is {found.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; prepare the folder again"
        )
    return found


def verify(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Check that all parts are there, whole and unchanged.

    Raises:
        PartsError: names every part that is not.
    """
    problems = []
    for part in manifest["parts"]:
        path = folder / part["name"]
        if not path.is_file():
            problems.append(f"{path.name} is missing")
        elif (size := path.stat().st_size) != part["bytes"]:
            problems.append(f"{path.name} has {size:,} bytes instead of {part['bytes']:,}")
        elif sha256_file(path) != part["sha256"]:
            problems.append(f"{path.name} was changed: its sha256 differs")
    if problems:
        raise PartsError(f"{folder}: {'; '.join(problems)}; copy these parts again")


def join(folder: Path, target: Path) -> bool:
    """Verify the parts and write their files into `target`, unless it already has these.

    Returns:
        Whether files were written.

    Raises:
        PartsError: a part is missing or was changed.
    """
    manifest = read_manifest(folder)
    identity = hashlib.sha256(json.dumps(manifest["parts"]).encode()).hexdigest()
    mark = target / ".joined"
    if mark.is_file() and mark.read_text(encoding="ascii") == identity:
        return False
    verify(folder, manifest)
    temporary = target.with_name(f".tmp-{target.name}")
    for old in (target, temporary):
        shutil.rmtree(old, ignore_errors=True)
    temporary.mkdir(parents=True)
    paths = [folder / part["name"] for part in manifest["parts"]]
    reader = _PartReader(paths)
    with tarfile.open(fileobj=reader, mode="r|", bufsize=_BUFFER) as archive:
        archive.extractall(temporary, filter="data")
    (temporary / ".joined").write_text(identity, encoding="ascii")
    temporary.rename(target)
    return True


class _PartReader:
    """Parts, read as one file."""

    def __init__(self, paths: list[Path]) -> None:
        self._chunks = _chunks(paths)
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (chunk := next(self._chunks, b"")):
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def _chunks(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_BUFFER):
                yield chunk
