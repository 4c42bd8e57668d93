"""Cuts long text files into documents, so that a few large files can fill all buckets.

A document feeds one bucket, so a corpus of a few books would otherwise leave buckets empty. Cut
number k is the best boundary in the half piece after byte k * size: a heading, else a blank line, a
line end, a space, or any character. So a cut depends on the text around it alone, not on earlier
cuts, shards or workers; no text is lost; and a piece has between half and twice the size.

The pieces of one book may be in the training and in the held-out split: they share a style and a
subject, but no text. Rows of JSON lines and parquet files are not cut: their author has said what a
document is.
"""

import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from longred.data.finding import TEXT_SUFFIXES, suffix_of
from longred.data.shards import Part

VERSION = 1
"""Raise when other cuts are made; it is part of the fingerprint of a source that is cut."""

_BLANK_LINE, _LINE_END, _SPACE = rb"\n[ \t\r]*\n", rb"\n", rb"[ \t]"
_BEFORE_CHARACTER = rb"(?=[^\x80-\xbf])"
_GENERAL = (_BLANK_LINE, _LINE_END, _SPACE, _BEFORE_CHARACTER)
_BOUNDARIES = {
    ".txt": _GENERAL,
    ".md": (rb"\n(?=#{1,6} )", *_GENERAL),
    # A blank line before a statement of the module, so that functions stay whole.
    ".py": (rb"\n[ \t\r]*\n(?=[^\s)\]}])", *_GENERAL),
}


def num_pieces(path: str, num_bytes: int, size: int | None) -> int:
    """Return how many documents a file of `num_bytes` is cut into; 1 if it is not cut.

    Args:
        path: its name, whose suffix says whether it is text.
        num_bytes: its size.
        size: `DataConfig.piece_bytes`.
    """
    if size is None or suffix_of(path) not in TEXT_SUFFIXES:
        return 1
    return max(1, num_bytes // size)


def cut_parts(path: str, num_bytes: int, size: int, shard_bytes: int) -> Iterator[Part]:
    """Yield runs of the pieces of a file, each of about `shard_bytes` and at least one piece."""
    count, at_once = num_pieces(path, num_bytes, size), max(1, shard_bytes // size)
    for first in range(0, count, at_once):
        last = first + at_once
        end = last * size if last < count else num_bytes
        yield Part(path, first * size, end, end - first * size)


def read_pieces(file: BinaryIO, part: Part, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield offset and bytes of the pieces of a part; reads forward, at most two pieces ahead."""
    patterns = [re.compile(pattern) for pattern in _BOUNDARIES[suffix_of(part.path)]]

    def boundary(text: bytes) -> int:
        found = next(filter(None, (pattern.search(text) for pattern in patterns)), None)
        return found.end() if found else 0

    at, held = part.start, b""
    if at:
        file.seek(at)
        held = file.read(size // 2)
        begin = boundary(held)
        at, held = at + begin, held[begin:]
    targets = list(range(part.start + size, part.end + 1, size))
    targets[-1] = part.end
    for target in targets:
        held += file.read(target + size // 2 - at - len(held))
        cut = target - at
        cut += boundary(held[cut:])
        yield at, held[:cut]
        at, held = at + cut, held[cut:]


def count_cut(parts: Iterable[Part], size: int | None) -> tuple[int, int]:
    """Return how many files were cut, and into how many documents, counted over some parts."""
    if size is None:
        return 0, 0
    cut = [part for part in parts if part.end and suffix_of(part.path) in TEXT_SUFFIXES]
    pieces = sum((part.end - part.start) // size for part in cut)
    return len({part.path for part in cut}), pieces


def cut_text(num_files: int, num_documents: int) -> str:
    """Return `3 files cut into 412 documents`."""
    plural = "" if num_files == 1 else "s"
    return f"{num_files:,} file{plural} cut into {num_documents:,} documents"
