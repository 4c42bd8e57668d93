"""Splits a byte stream into lines: plain or compressed, of any length, even damaged or cut off."""

import hashlib
import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from longred.data.documents import RAW_BYTES, Row

CHUNK_BYTES = 2**20
# Compressed chunks are smaller, because they expand.
COMPRESSED_CHUNK_BYTES = 2**16
GZIP_WINDOW = 31


class Lines:
    """The non-blank lines that begin in a byte range of a file, in order.

    Args:
        file: opened for reading, at its start.
        name: its name; `.gz` and `.zst` are decompressed and can only be read as a whole.
        start: first byte of the range; a line that began earlier belongs to the previous range.
        end: byte after the range; a line that began in the range is read to its end.
        max_bytes: longer lines are not held in memory.

    Attributes:
        num_lines: line ends passed so far, including those of blank lines.
    """

    def __init__(
        self, file: BinaryIO, name: str, *, start: int = 0, end: int | None = None, max_bytes: int
    ) -> None:
        self.num_lines = 0
        self._file, self._name = file, name
        self._start, self._end, self._max_bytes = start, end, max_bytes

    def __iter__(self) -> Iterator[Row]:
        """Yield the lines."""
        offset, end = self._start, self._end
        if offset:
            # The byte before `start` tells whether a line begins there.
            offset -= 1
            self._file.seek(offset)
        stream = _ChunkStream(_chunks(self._file, self._name))
        reader: io.BufferedReader = io.BufferedReader(stream, CHUNK_BYTES)
        if self._start:
            offset += sum(len(piece) for piece in _rest_of_line(reader))
        while end is None or offset < end:
            raw = reader.readline(self._max_bytes + 1)
            has_end = raw.endswith(b"\n")
            raw = raw.removesuffix(b"\n")
            size, problem, sha256 = len(raw), "", ""
            if size > self._max_bytes:
                hasher = hashlib.sha256(raw)
                for piece in _rest_of_line(reader):
                    has_end = piece.endswith(b"\n")
                    hasher.update(piece.removesuffix(b"\n"))
                    size += len(piece) - has_end
                raw, problem, sha256 = raw[:RAW_BYTES], "oversized", hasher.hexdigest()
            line_number = self.num_lines + 1
            if has_end or sha256:
                self.num_lines += 1
            if not has_end:
                if stream.is_truncated:
                    problem = "truncated_stream"
                elif problem and (end is not None or raw.isspace()):
                    # An oversized last line without a line end is not reported in a byte range.
                    return
            if problem or raw.strip():
                yield Row(line_number, offset, raw, problem, sha256)
            if not has_end:
                return
            offset += size + 1


def _rest_of_line(reader: io.BufferedReader) -> Iterator[bytes]:
    """Yield the bytes up to and including the next line end, in bounded pieces."""
    while piece := reader.readline(CHUNK_BYTES):
        yield piece
        if piece.endswith(b"\n"):
            return


class _Truncated(Exception):
    """A compressed stream is damaged or ends early."""


class _ChunkStream(io.RawIOBase):
    """Chunks as a raw stream; a truncated one ends and sets `is_truncated`.

    Raising would make the buffer above lose the line that it is reading.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.is_truncated = False
        self._chunks, self._left = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            if not self._left:
                self._left = memoryview(next(self._chunks, b""))
        except _Truncated:
            self.is_truncated = True
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def _chunks(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the content of a file, decompressed; never an empty chunk."""
    if name.endswith(".gz"):
        # Some files are padded with zeros after the last member. Output is bounded per call.
        yield from _decompressed(
            file, lambda: zlib.decompressobj(GZIP_WINDOW), zlib.error, CHUNK_BYTES, padding=b"\0"
        )
    elif name.endswith(".zst"):
        import zstandard

        new_frame = zstandard.ZstdDecompressor().decompressobj
        yield from _decompressed(file, new_frame, zstandard.ZstdError)
    else:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _decompressed(
    file: BinaryIO, new_member: Any, error: type[Exception], *limit: int, padding: bytes = b""
) -> Iterator[bytes]:
    """Yield the content of a file of one or more compressed members.

    Raises:
        _Truncated: the file is empty or damaged, or its last member is cut off.
    """
    member, is_open = new_member(), False
    while data := file.read(COMPRESSED_CHUNK_BYTES):
        while data:
            is_open = True
            try:
                chunk = member.decompress(data, *limit)
            except error:
                raise _Truncated from None
            data = member.unconsumed_tail or member.unused_data
            if chunk:
                yield chunk
            if member.eof:
                data, is_open = data.lstrip(padding), False
                member = new_member()
    if is_open or file.tell() == 0:
        raise _Truncated
