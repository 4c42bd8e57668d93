"""Cuts a byte stream into lines, plain or compressed, however long, damaged or short it is."""

import hashlib
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from longred.data.intake import RAW_BYTES

CHUNK_BYTES = 2**20
# Compressed bytes go in by less, since they come out as more.
COMPRESSED_CHUNK_BYTES = 2**16
GZIP_WINDOW = 31


class Truncated(Exception):
    """A compressed stream ends before its end or is damaged."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line with content.

    Attributes:
        number: from 1, counted from where reading began.
        offset: byte at which it starts, in the uncompressed file.
        raw: its bytes without the line end; of a line that is too long, the first.
        problem: why it cannot be used: `oversized` or `truncated_stream`.
        sha256: of all bytes of a line that is too long.
    """

    number: int
    offset: int
    raw: bytes
    problem: str | None = None
    sha256: str | None = None


def read_lines(
    file: BinaryIO, name: str, *, start: int = 0, end: int | None = None, max_bytes: int
) -> Generator[Line, None, int]:
    """Yield the lines that begin in a stretch of a file, those without content left out.

    Args:
        file: opened for reading, at its start.
        name: its name; `.gz` and `.zst` are decompressed and can only be read whole.
        start: first byte of the stretch; a line that began before it belongs to the stretch before.
        end: the byte behind the stretch; a line that began in it is read to its end.
        max_bytes: longer lines are not held in memory.

    Returns:
        (as the value of `yield from`) The number of lines that begin there and end anywhere, those
        without content included.
    """
    cutter = _Cutter(start, end, max_bytes)
    if start:
        # Whether a line begins at `start` is said by the byte before it.
        file.seek(start - 1)
        cutter.skip_first()
    problem = None
    try:
        for chunk in _chunks(file, name):
            yield from cutter.cut(chunk)
            if cutter.is_done:
                return cutter.num_lines
    except Truncated:
        problem = "truncated_stream"
    last = cutter.rest(problem)
    if problem or (last.raw.strip() and not cutter.is_done):
        yield last
    return cutter.num_lines


class _LongLine:
    """A line that is too long to be held: its start, its hash so far and its size so far."""

    def __init__(self, raw: bytes) -> None:
        self.head, self.hasher, self.size = raw[:RAW_BYTES], hashlib.sha256(raw), len(raw)

    def add(self, raw: bytes) -> None:
        self.hasher.update(raw)
        self.size += len(raw)


class _Cutter:
    """Collects chunks and gives out whole lines."""

    def __init__(self, offset: int, end: int | None, max_bytes: int) -> None:
        self.offset = offset
        self.num_lines = 0
        self._end, self._max_bytes = end, max_bytes
        self._rest = b""
        self._skipping = False
        self._long: _LongLine | None = None

    @property
    def is_done(self) -> bool:
        """Whether the next line begins behind the stretch."""
        return self._end is not None and not self._long and self.offset >= self._end

    def skip_first(self) -> None:
        """Drop everything up to the first line end; the stream begins one byte early."""
        self._skipping = True
        self.offset -= 1

    def cut(self, chunk: bytes) -> Iterator[Line]:
        """Take a chunk; yield the lines with content that end in it."""
        if self._skipping:
            head, newline, chunk = chunk.partition(b"\n")
            self.offset += len(head) + len(newline)
            if not newline:
                return
            self._skipping = False
        if self._long:
            head, newline, chunk = chunk.partition(b"\n")
            self._long.add(head)
            if not newline:
                return
            yield self._end_long()
        if self.is_done:
            return
        pieces = (self._rest + chunk).split(b"\n")
        self._rest = pieces.pop()
        for raw in pieces:
            if self.is_done:
                return
            if len(raw) > self._max_bytes:
                self._long = _LongLine(raw)
                yield self._end_long()
                continue
            self.num_lines += 1
            line = Line(self.num_lines, self.offset, raw)
            self.offset += len(raw) + 1
            if raw and not raw.isspace():
                yield line
        if len(self._rest) > self._max_bytes:
            self._long = _LongLine(self._rest)
            self._rest = b""

    def rest(self, problem: str | None) -> Line:
        """Return what stands behind the last line end."""
        if self._long:
            line = self._end_long()
            return Line(line.number, line.offset, line.raw, problem or line.problem, line.sha256)
        return Line(self.num_lines + 1, self.offset, self._rest, problem)

    def _end_long(self) -> Line:
        long, self._long = self._long, None
        if long is None:
            raise RuntimeError("no long line has begun")
        self.num_lines += 1
        line = Line(self.num_lines, self.offset, long.head, "oversized", long.hasher.hexdigest())
        self.offset += long.size + 1
        return line


def _chunks(file: BinaryIO, name: str) -> Iterator[bytes]:
    if name.endswith(".gz"):
        yield from _unzipped(file)
    elif name.endswith(".zst"):
        yield from _unpacked(file)
    else:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _unzipped(file: BinaryIO) -> Iterator[bytes]:
    member = zlib.decompressobj(GZIP_WINDOW)
    begun = False
    while data := file.read(COMPRESSED_CHUNK_BYTES):
        while data:
            begun = True
            try:
                chunk = member.decompress(data, CHUNK_BYTES)
            except zlib.error:
                raise Truncated from None
            data = member.unconsumed_tail or member.unused_data
            if chunk:
                yield chunk
            if member.eof:
                # What pads the end of some files is no further member.
                data, begun = data.lstrip(b"\0"), False
                member = zlib.decompressobj(GZIP_WINDOW)
    if begun or file.tell() == 0:
        raise Truncated


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    import zstandard

    frame = zstandard.ZstdDecompressor().decompressobj()
    begun = False
    while data := file.read(COMPRESSED_CHUNK_BYTES):
        while data:
            begun = True
            try:
                chunk = frame.decompress(data)
            except zstandard.ZstdError:
                raise Truncated from None
            data = frame.unused_data
            if chunk:
                yield chunk
            if frame.eof:
                begun = False
                frame = zstandard.ZstdDecompressor().decompressobj()
    if begun or file.tell() == 0:
        raise Truncated
