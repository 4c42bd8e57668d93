"""Reads documents from local files: text, JSON lines and parquet, one bad row at a time."""

import glob
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from longred.data.documents import Document, document_id
from longred.data.intake import Intake, Rejection, checked_text, text_of
from longred.errors import ConfigError, PreflightError

TEXT_SUFFIXES = (".txt", ".md", ".py")
ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
SUFFIXES = TEXT_SUFFIXES + ROW_SUFFIXES
UTF8_MARK = b"\xef\xbb\xbf"


def find_files(pattern: str, key: str) -> tuple[Path, list[str]]:
    """Return the root of a file, folder or glob and the readable files under it.

    Args:
        pattern: path of a file or folder, or a glob (`**` crosses folders).
        key: dotted key of the source, for messages.

    Returns:
        The root, and POSIX paths relative to it in an order that only depends on those paths and
        looks random, so that the first files are a fair sample.

    Raises:
        ConfigError: nothing is there, or nothing with a known suffix.
    """
    path = Path(pattern).expanduser()
    known = ", ".join(SUFFIXES)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise ConfigError(f"{key}.path: {path} has none of the suffixes {known}")
        return path.parent, [path.name]
    if path.is_dir():
        root = path
        found = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    elif glob.has_magic(str(path)):
        root = _literal_folder(path)
        found = (Path(name) for name in glob.iglob(str(path), recursive=True))
    else:
        raise ConfigError(f"{key}.path: {path} does not exist (from {Path.cwd()})")
    names = [
        file.relative_to(root).as_posix()
        for file in found
        if file.name.endswith(SUFFIXES) and file.is_file()
    ]
    if not names:
        raise ConfigError(f"{key}.path: no files with the suffixes {known} in {path}")
    return root, sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def read_files(
    name: str, root: Path, paths: list[str], text_field: str, intake: Intake
) -> Iterator[Document]:
    """Yield the documents of files; rows that cannot be used are counted by `intake`.

    Args:
        name: the source's name, part of each document's id.
        root: folder that `paths` are relative to.
        paths: what `find_files` returned.
        text_field: where the text is in rows of JSON lines and parquet.
        intake: counts; a file of rows is a shard, all text files together are one.

    Raises:
        ConfigError: too many rows of a shard were rejected, or a parquet file has no such column.
        PreflightError: a file cannot be opened.
    """
    for path in paths:
        read = _reader(path)
        try:
            yield from read(name, root, path, text_field, intake)
        except PermissionError as error:
            raise PreflightError(f"{root / path}: cannot be read ({error.strerror})") from error
        if path.endswith(ROW_SUFFIXES):
            intake.end_shard(str(root / path))
    intake.end_shard(str(root))


Reader = Callable[[str, Path, str, str, Intake], Iterator[Document]]


def _reader(path: str) -> Reader:
    if path.endswith(".parquet"):
        return _read_parquet
    return _read_lines if path.endswith(ROW_SUFFIXES) else _read_text


def _read_text(name: str, root: Path, path: str, _: str, intake: Intake) -> Iterator[Document]:
    raw = (root / path).read_bytes()
    try:
        text = checked_text(_decode(raw))
    except Rejection as rejection:
        intake.reject(str(root), rejection.reason, path, offset=0, line=1, raw=raw)
        return
    intake.take(str(root))
    yield Document(document_id(name, path), path, text)


def _read_lines(
    name: str, root: Path, path: str, text_field: str, intake: Intake
) -> Iterator[Document]:
    shard = str(root / path)
    for line, offset, raw in _lines(root / path):
        if raw is None:
            intake.reject(shard, "truncated_stream", path, offset=offset, line=line, raw=b"")
            return
        try:
            text = text_of(_parse(raw), text_field)
        except Rejection as rejection:
            intake.reject(shard, rejection.reason, path, offset=offset, line=line, raw=raw)
            continue
        intake.take(shard)
        yield Document(document_id(name, path, offset), path, text)


def _lines(path: Path) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (line from 1, byte offset, bytes) of lines with content; None: the stream broke off."""
    line, offset = 0, 0
    with path.open("rb") as file, _plain(file, path) as stream:
        while True:
            line += 1
            try:
                raw = stream.readline()
            except (EOFError, zlib.error, gzip.BadGzipFile):
                yield line, offset, None
                return
            if not raw:
                return
            if raw.strip():
                yield line, offset, raw
            offset += len(raw)


def _plain(file: BinaryIO, path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.GzipFile(fileobj=file) if path.name.endswith(".gz") else file


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
    name: str, root: Path, path: str, text_field: str, intake: Intake
) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    shard = str(root / path)
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(root / path) as file:
            if text_field not in file.schema_arrow.names:
                columns = ", ".join(file.schema_arrow.names)
                raise ConfigError(
                    f"data.sources: {shard} has no column {text_field} (text_field of {name}); "
                    f"it has {columns}"
                )
            for batch in file.iter_batches(batch_size=256, columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    document = _row(name, shard, path, row, {text_field: value}, text_field, intake)
                    row += 1
                    if document:
                        yield document
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(
            f"{shard}: is not a whole parquet file ({error}); fetch it again"
        ) from error


def _row(
    name: str, shard: str, path: str, row: int, values: Any, text_field: str, intake: Intake
) -> Document | None:
    """Return the document of one row of a table, or None after counting why it has none."""
    try:
        text = text_of(values, text_field)
    except Rejection as rejection:
        raw = repr(values).encode("utf-8", errors="backslashreplace")
        intake.reject(shard, rejection.reason, path, offset=row, line=row + 1, raw=raw)
        return None
    intake.take(shard)
    return Document(document_id(name, path, row), path, text)


def read_table(
    name: str, shard: str, rows: Iterator[Any], text_field: str, intake: Intake
) -> Iterator[Document]:
    """Yield the documents of a stream of rows that has no local file; ids hash the row's number.

    Raises:
        ConfigError: too many rows were rejected.
    """
    for number, values in enumerate(rows):
        document = _row(name, shard, shard, number, values, text_field, intake)
        if document:
            yield document
    intake.end_shard(shard)


def _literal_folder(path: Path) -> Path:
    parts = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts) if parts else Path()
