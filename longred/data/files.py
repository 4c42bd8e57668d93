"""Reads documents from text, JSON lines and parquet files, local or behind a URL."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from longred.config import DataConfig, SourceConfig
from longred.data import cutting
from longred.data.documents import Document, Intake, Rejection, Row, document_id
from longred.data.finding import (
    COMPRESSED_SUFFIXES,
    TEXT_SUFFIXES,
    Files,
    find_files,
    locate,
    suffix_of,
)
from longred.data.lines import Lines
from longred.data.shards import Part
from longred.errors import ConfigError, PreflightError
from longred.store.artifacts import sha256_file

UTF8_MARK = b"\xef\xbb\xbf"
# Errors of the file itself, not of the connection to it.
FILE_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError)
# Assumed ratio of text to compressed bytes.
EXPANSION = 4
# Upper bounds of the bytes that JSON needs per character, and around the text.
BYTES_PER_CHARACTER, ROW_BYTES = 6, 65536


def parts(config: DataConfig, source: SourceConfig, key: str) -> Iterator[Part]:
    """Yield whole files, byte ranges of large ones, and row groups of large parquet files."""
    files = find_files(source.path or "", f"{key}.path")
    piece = config.piece_bytes()
    for path, size in files.sizes.items():
        suffix = suffix_of(path)
        if suffix.endswith(COMPRESSED_SUFFIXES):
            yield Part(path, num_bytes=size * EXPANSION)
        elif piece and cutting.num_pieces(path, size, piece) > 1:
            yield from cutting.cut_parts(path, size, piece, config.shard_bytes)
        elif size <= config.shard_bytes or suffix in TEXT_SUFFIXES:
            yield Part(path, num_bytes=size)
        elif suffix == ".parquet":
            yield from _row_groups(files, path, config.shard_bytes)
        else:
            for start in range(0, size, config.shard_bytes):
                end = min(size, start + config.shard_bytes)
                yield Part(path, start, end, end - start)


def _row_groups(files: Files, path: str, shard_bytes: int) -> Iterator[Part]:
    """Yield runs of row groups; an unreadable file is one part, which `read` will reject."""
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
    """Yield the documents of some parts; `intake` counts the rows that cannot be used.

    Raises:
        ConfigError: a parquet file has no column named like the text field.
        PreflightError: a URL cannot be reached.
    """
    filesystem, _, root = locate(source.path or "", f"data.sources ({source.name})")
    files = Files(filesystem, root, {})
    for part in parts:
        try:
            if suffix_of(part.path) == ".parquet":
                yield from _read_parquet(files, source, part, intake)
            else:
                yield from _read_rows(files, source, part, intake, config.piece_bytes())
        except OSError as error:
            if not files.is_local and not isinstance(error, FILE_ERRORS):
                raise PreflightError(
                    f"data.sources: {files.full(part.path)} (source {source.name}) cannot be "
                    f"reached ({error}); finished shards are kept, run the same command again"
                ) from error
            message = f"{type(error).__name__}: {error.strerror or error}".encode()
            intake.reject("unreadable", part.path, Row(1, part.start, message))


def _read_rows(
    files: Files, source: SourceConfig, part: Part, intake: Intake, piece: int | None
) -> Iterator[Document]:
    """Yield the documents of JSON lines, the single one of a text file, or those cut from it."""
    suffix = suffix_of(part.path)
    is_text = suffix in TEXT_SUFFIXES
    max_bytes = intake.max_characters * BYTES_PER_CHARACTER + ROW_BYTES
    with files.open(part.path) as file:
        lines = Lines(file, suffix, start=part.start, end=part.end or None, max_bytes=max_bytes)
        rows: Iterable[Row] = lines
        if is_text and piece and part.end:
            rows = _pieces(file, part, piece, intake)
        elif is_text:
            rows = [_whole_text(file, intake)]
        for row in rows:
            try:
                if row.problem:
                    raise Rejection(row.problem)
                text = _decode(row.raw)
                if is_text:
                    intake.checked(text)
                else:
                    text = intake.text(_parse(text), source.text_field)
            except Rejection as rejection:
                intake.reject(str(rejection), part.path, row)
            else:
                intake.take()
                id = document_id(source.name, part.path, row.offset)
                yield Document(id, part.path, row.offset, text)
        if not is_text:
            intake.num_lines[part.path] += lines.num_lines


def _pieces(file: BinaryIO, part: Part, size: int, intake: Intake) -> Iterator[Row]:
    """Yield the pieces of a text file, each numbered by its first line in the part."""
    num_lines = 0
    for offset, raw in cutting.read_pieces(file, part, size):
        yield Row(num_lines + 1, offset, raw)
        num_lines += raw.count(b"\n")
    intake.num_lines[part.path] += num_lines


def _whole_text(file: BinaryIO, intake: Intake) -> Row:
    """Return the content of a text file; only the start of an oversized one is held in memory."""
    limit = intake.max_characters * 4 + len(UTF8_MARK)
    raw = file.read(limit + 1)
    if len(raw) <= limit:
        return Row(1, 0, raw)
    hasher = hashlib.sha256(raw)
    while chunk := file.read(2**20):
        hasher.update(chunk)
    return Row(1, 0, raw, "oversized", hasher.hexdigest())


def _decode(raw: bytes) -> str:
    try:
        return raw.removeprefix(UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError:
        raise Rejection("bad_utf8") from None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Rejection("bad_json") from None


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
        intake.reject("bad_parquet", part.path, Row(row + 1, row, raw))


def read_row(
    source: SourceConfig, path: str, row: int, values: Any, intake: Intake
) -> Document | None:
    """Return the document of a table row, or None after counting its rejection."""
    try:
        text = intake.text(values, source.text_field)
    except Rejection as rejection:
        content = values.get(source.text_field) if isinstance(values, dict) else values
        raw = content if isinstance(content, str) else repr(content)
        encoded = raw.encode("utf-8", errors="backslashreplace")
        intake.reject(str(rejection), path, Row(row + 1, row, encoded))
        return None
    intake.take()
    return Document(document_id(source.name, path, row), path, row, text)


def fingerprint(config: DataConfig, source: SourceConfig, key: str) -> str:
    """Return the `content_digest` of a source's files, and how they are cut if any is."""
    files = find_files(source.path or "", f"{key}.path")
    digest, piece = content_digest(files), config.piece_bytes()
    if any(cutting.num_pieces(path, size, piece) > 1 for path, size in files.sizes.items()):
        cuts = f"{digest} cut {cutting.VERSION} {piece}"
        return hashlib.sha256(cuts.encode()).hexdigest()
    return digest


def content_digest(files: Files) -> str:
    """Return a digest of file names and contents; for remote files, of their version keys.

    An unreadable local file enters the digest as its error number; `read` quarantines it.
    """
    hasher = hashlib.sha256()
    for path in sorted(files.sizes):
        hasher.update(f"\0{path}\0".encode())
        if not files.is_local:
            hasher.update(str(files.filesystem.ukey(files.full(path))).encode())
            continue
        try:
            hasher.update(sha256_file(Path(files.full(path))).encode())
        except OSError as error:
            hasher.update(f"unreadable {error.errno}".encode())
    return hasher.hexdigest()
