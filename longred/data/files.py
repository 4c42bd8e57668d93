"""Reads documents from files, local or behind a URL: text, JSON lines, parquet; a row at a time."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from longred.config import DataConfig, SourceConfig
from longred.data.documents import Document, document_id
from longred.data.intake import RAW_BYTES, Intake, Rejection
from longred.data.kinds import Kind
from longred.data.lines import read_lines
from longred.data.shards import Part
from longred.errors import ConfigError, PreflightError
from longred.store.artifacts import sha256_file

TEXT_SUFFIXES = (".txt", ".md", ".py")
LINE_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
COMPRESSED_SUFFIXES = (".gz", ".zst")
SUFFIXES = (*TEXT_SUFFIXES, *LINE_SUFFIXES, ".parquet")
UTF8_MARK = b"\xef\xbb\xbf"
# What is wrong with the file and not with the way to it.
LOST = (FileNotFoundError, PermissionError, IsADirectoryError)
# About how much text compressed rows hold.
EXPANSION = 4
# The most bytes that JSON spends on a character, and on what stands around the text.
BYTES_PER_CHARACTER, ROW_BYTES = 6, 65536


@dataclass(frozen=True, slots=True)
class Files:
    """Files below a root.

    Attributes:
        filesystem: of fsspec; local or behind a URL.
        root: the folder that paths are relative to.
        sizes: POSIX path → bytes, in an order that only depends on those paths and looks random,
            so that the first files are a fair sample.
    """

    filesystem: Any
    root: str
    sizes: dict[str, int]

    def full(self, path: str) -> str:
        """Return the path as the file system knows it."""
        return f"{self.root}/{path}" if self.root else path

    def open(self, path: str) -> BinaryIO:
        """Open one file for reading."""
        opened: BinaryIO = self.filesystem.open(self.full(path), "rb")
        return opened


def find_files(pattern: str, key: str) -> Files:
    """Return the readable files of a file, folder or glob.

    Args:
        pattern: path or URL of a file or folder, or a glob (`**` crosses folders).
        key: dotted key it was given in, for messages.

    Raises:
        ConfigError: nothing is there, or nothing with a known suffix.
        PreflightError: the place behind a URL cannot be reached.
    """
    filesystem, place = _open_place(pattern, key)
    known = ", ".join(SUFFIXES)
    try:
        if _has_magic(place):
            root = _literal_folder(place)
            found = filesystem.glob(place, detail=True)
        elif filesystem.isfile(place):
            root, found = place.rpartition("/")[0], {place: filesystem.info(place)}
            if not place.endswith(SUFFIXES):
                raise ConfigError(f"{key}: {place} has none of the suffixes {known}")
        elif filesystem.isdir(place):
            root, found = place, filesystem.find(place, detail=True)
        else:
            raise ConfigError(f"{key}: {place} does not exist")
    except PermissionError as error:
        raise PreflightError(f"{key}: {pattern} cannot be listed ({error})") from error
    except OSError as error:
        raise PreflightError(f"{key}: {pattern} cannot be reached ({error})") from error
    prefix = f"{root}/" if root else ""
    sizes = {
        name.removeprefix(prefix): int(info.get("size") or 0)
        for name, info in found.items()
        if name.endswith(SUFFIXES) and info.get("type") != "directory"
    }
    if not sizes:
        raise ConfigError(f"{key}: no files with the suffixes {known} in {place}")
    names = sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest())
    return Files(filesystem, root, {name: sizes[name] for name in names})


def _open_place(pattern: str, key: str) -> tuple[Any, str]:
    import fsspec

    try:
        filesystem, place = fsspec.core.url_to_fs(pattern)
    except ImportError as error:
        scheme = pattern.partition("://")[0]
        raise PreflightError(f"{key}: reading {scheme}:// needs a package ({error})") from error
    except ValueError as error:
        raise ConfigError(f"{key}: {pattern} cannot be opened ({error})") from error
    return filesystem, str(place)


def parts(config: DataConfig, source: SourceConfig, key: str) -> Iterator[Part]:
    """Yield what a source reads: whole files, byte ranges of large ones, row groups of parquet."""
    files = find_files(source.path or "", f"{key}.path")
    for path, size in files.sizes.items():
        if path.endswith(COMPRESSED_SUFFIXES):
            yield Part(path, num_bytes=size * EXPANSION)
        elif size <= config.shard_bytes or path.endswith(TEXT_SUFFIXES):
            yield Part(path, num_bytes=size)
        elif path.endswith(".parquet"):
            yield from _row_groups(files, path, config.shard_bytes)
        else:
            for start in range(0, size, config.shard_bytes):
                end = min(size, start + config.shard_bytes)
                yield Part(path, start, end, end - start)


def _row_groups(files: Files, path: str, shard_bytes: int) -> Iterator[Part]:
    """Yield runs of row groups; a file that cannot be read is left to `read`, which counts it."""
    import pyarrow
    import pyarrow.parquet

    try:
        with files.open(path) as file:
            metadata = pyarrow.parquet.ParquetFile(file).metadata
            sizes = [
                metadata.row_group(group).total_byte_size
                for group in range(metadata.num_row_groups)
            ]
    except (OSError, pyarrow.ArrowException):
        yield Part(path, num_bytes=files.sizes[path])
        return
    first, held = 0, 0
    for group, size in enumerate(sizes):
        held += size
        if held >= shard_bytes or group + 1 == len(sizes):
            yield Part(path, first, group + 1, held)
            first, held = group + 1, 0


def read(
    config: DataConfig, source: SourceConfig, parts: tuple[Part, ...], intake: Intake
) -> Iterator[Document]:
    """Yield the documents of some parts; rows that cannot be used are counted by `intake`.

    Raises:
        ConfigError: a parquet file has no column of the text field's name.
    """
    filesystem, place = _open_place(source.path or "", source.name)
    files = Files(filesystem, _root(filesystem, place), {})
    for part in parts:
        reader = _read_lines
        if part.path.endswith(TEXT_SUFFIXES):
            reader = _read_text
        elif part.path.endswith(".parquet"):
            reader = _read_parquet
        try:
            yield from reader(files, source, part, intake)
        except OSError as error:
            if not _is_local(filesystem) and not isinstance(error, LOST):
                raise PreflightError(
                    f"data.sources: {files.full(part.path)} (source {source.name}) cannot be "
                    f"reached ({error}); what is finished is kept, run the same command again"
                ) from error
            message = f"{type(error).__name__}: {error.strerror or error}".encode()
            intake.reject("unreadable", part.path, offset=part.start, line=1, raw=message)


def _read_text(
    files: Files, source: SourceConfig, part: Part, intake: Intake
) -> Iterator[Document]:
    limit = intake.max_characters * 4 + len(UTF8_MARK)
    with files.open(part.path) as file:
        raw = file.read(limit + 1)
        if len(raw) > limit:
            hasher = hashlib.sha256(raw)
            while chunk := file.read(2**20):
                hasher.update(chunk)
            intake.reject(
                "oversized",
                part.path,
                offset=0,
                line=1,
                raw=raw[:RAW_BYTES],
                sha256=hasher.hexdigest(),
            )
            return
    try:
        text = intake.checked(_decode(raw))
    except Rejection as rejection:
        intake.reject(rejection.reason, part.path, offset=0, line=1, raw=raw)
        return
    intake.take()
    yield Document(document_id(source.name, part.path), part.path, 0, text)


def _read_lines(
    files: Files, source: SourceConfig, part: Part, intake: Intake
) -> Iterator[Document]:
    with files.open(part.path) as file:
        lines = read_lines(
            file,
            part.path,
            start=part.start,
            end=part.end or None,
            max_bytes=intake.max_characters * BYTES_PER_CHARACTER + ROW_BYTES,
        )
        while True:
            try:
                line = next(lines)
            except StopIteration as end:
                intake.num_lines[part.path] += end.value
                return
            try:
                if line.problem:
                    raise Rejection(line.problem)
                text = intake.text(_parse(line.raw), source.text_field)
            except Rejection as rejection:
                intake.reject(
                    rejection.reason,
                    part.path,
                    offset=line.offset,
                    line=line.number,
                    raw=line.raw,
                    sha256=line.sha256,
                )
                continue
            intake.take()
            id = document_id(source.name, part.path, line.offset)
            yield Document(id, part.path, line.offset, text)


def _parse(raw: bytes) -> Any:
    text = _decode(raw)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Rejection("bad_json") from None


def _decode(raw: bytes) -> str:
    try:
        return raw.removeprefix(UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError:
        raise Rejection("bad_utf8") from None


def _read_parquet(
    files: Files, source: SourceConfig, part: Part, intake: Intake
) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    field = source.text_field
    row = 0
    try:
        with files.open(part.path) as opened, pyarrow.parquet.ParquetFile(opened) as file:
            if field not in file.schema_arrow.names:
                columns = ", ".join(file.schema_arrow.names)
                raise ConfigError(
                    f"data.sources: {files.full(part.path)} has no column {field} (text_field of "
                    f"{source.name}); it has {columns}"
                )
            groups = range(part.start, part.end or file.num_row_groups)
            row = sum(file.metadata.row_group(group).num_rows for group in range(part.start))
            for batch in file.iter_batches(batch_size=64, row_groups=groups, columns=[field]):
                for value in batch.column(0).to_pylist():
                    document = read_row(source, part.path, row, {field: value}, intake)
                    row += 1
                    if document:
                        yield document
    except pyarrow.ArrowException as error:
        raw = f"{type(error).__name__}: {error}".encode()
        intake.reject("bad_parquet", part.path, offset=row, line=row + 1, raw=raw)


def read_row(
    source: SourceConfig, path: str, row: int, values: Any, intake: Intake
) -> Document | None:
    """Return the document of one row of a table, or None after counting why it has none."""
    try:
        text = intake.text(values, source.text_field)
    except Rejection as rejection:
        shown = values.get(source.text_field) if isinstance(values, dict) else values
        raw = shown if isinstance(shown, str) else repr(shown)
        encoded = raw.encode("utf-8", errors="backslashreplace")
        intake.reject(rejection.reason, path, offset=row, line=row + 1, raw=encoded)
        return None
    intake.take()
    return Document(document_id(source.name, path, row), path, row, text)


def fingerprint(config: DataConfig, source: SourceConfig, key: str) -> str:
    """Return a digest of a source's files; see `content_digest`."""
    return content_digest(find_files(source.path or "", f"{key}.path"))


def content_digest(files: Files) -> str:
    """Return a digest of names and contents: local bytes, or what a remote store says of a file.

    A local file that cannot be read counts as such: `read` quarantines it.
    """
    hasher = hashlib.sha256()
    is_local = _is_local(files.filesystem)
    for path in sorted(files.sizes):
        hasher.update(f"\0{path}\0".encode())
        if not is_local:
            hasher.update(str(files.filesystem.ukey(files.full(path))).encode())
            continue
        try:
            hasher.update(sha256_file(Path(files.full(path))).encode())
        except OSError as error:
            hasher.update(f"unreadable {error.errno}".encode())
    return hasher.hexdigest()


def _is_local(filesystem: Any) -> bool:
    return "file" in filesystem.protocol


def _root(filesystem: Any, place: str) -> str:
    if _has_magic(place):
        return _literal_folder(place)
    return place.rpartition("/")[0] if filesystem.isfile(place) else place


def _has_magic(place: str) -> bool:
    return any(character in place for character in "*?[")


def _literal_folder(place: str) -> str:
    literal = []
    for part in place.split("/")[:-1]:
        if _has_magic(part):
            break
        literal.append(part)
    return "/".join(literal)


FILES = Kind(parts=parts, read=read, fingerprint=fingerprint)
