"""Haystacks, which grow in the smallest possible units, and needles inserted into them."""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_WORD = re.compile(r"\S+\s*")
_LINE_END = re.compile(r"\n+")
_SENTENCE_END = re.compile(r"[.!?]\s+")
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_SENTENCE_START = re.compile(r"(?<=[.!?])\s+|\n")

PASSAGE_WORDS = 80
"""Most words of a passage, about those of a paragraph of the questions' documents."""


@dataclass(frozen=True)
class Haystack:
    """Text that needles can be inserted into.

    Attributes:
        text: returns the first units, without needles.
        splits_lines: whether needles may go between the sentences of a text of a single line.
    """

    text: Callable[[int], str]
    splits_lines: bool = False

    def insert(
        self, needles: Sequence[str], num_units: int, depths: Sequence[float]
    ) -> tuple[str, list[float]]:
        """Insert needles into the first `num_units` units.

        Args:
            needles: sentences.
            num_units: size of the haystack.
            depths: wanted depth of each needle, from 0 (start) to 1 (end), increasing.

        Returns:
            The text, and for each needle the share of the haystack's characters before it.
        """
        text = self.text(num_units)
        if not text:
            return "\n".join(needles), [0.0] * len(needles)
        gaps, separator = self._gaps(text)
        chosen = [gaps[min(int(depth * len(gaps)), len(gaps) - 1)] for depth in depths]
        result = text
        for needle, gap in reversed(list(zip(needles, chosen, strict=True))):
            before, after = result[:gap], result[gap:]
            if before and not before[-1].isspace():
                before += separator
            result = before + needle + (separator if after else "") + after
        return result, [gap / len(text) for gap in chosen]

    def _gaps(self, text: str) -> tuple[list[int], str]:
        """Return the offsets where a needle may stand, and what separates it from the text."""
        separator = "\n"
        if "\n\n" in text:
            # Behind the last of several line ends.
            gaps = [match.end() for match in _LINE_END.finditer(text)]
        else:
            gaps = [*accumulate(len(line) + 1 for line in text.split("\n")[:-1])]
        if self.splits_lines and not gaps:
            gaps = [match.end() for match in _SENTENCE_END.finditer(text)]
            separator = " " if gaps else "\n"
        return [0, *gaps, len(text)], separator


def noise_haystack() -> Haystack:
    """Return RULER's noise: the same five short sentences on every line; a unit is a line."""
    return Haystack(lambda num_units: "\n".join([NOISE] * num_units))


def line_haystack(lines: Iterator[str]) -> Haystack:
    """Return lines that are drawn on demand and keep their order; a unit is a line."""
    drawn: list[str] = []

    def text(num_units: int) -> str:
        drawn.extend(islice(lines, max(0, num_units - len(drawn))))
        return "\n".join(drawn[:num_units])

    return Haystack(text)


def text_haystack(words: Sequence[str]) -> Haystack:
    """Return running text; a unit is a word with the white space behind it."""
    return Haystack(lambda num_units: "".join(words[:num_units]).rstrip(), splits_lines=True)


def flat_words(documents: Sequence[str], count: int) -> list[str]:
    """Return the first `count` words of all documents on one line.

    As in RULER, runs of white space become one space, and too short a text is repeated.
    """
    words = [f"{word} " for document in documents for word in document.split()]
    num_uses = -(-count // len(words))
    return (words * num_uses)[:count]


def passage_words(documents: Sequence[str], rng: random.Random, count: int) -> list[str]:
    """Return `count` words that start at a random line of a random document; keep white space.

    The following documents continue the passage; after the last comes the first again.
    """
    index = rng.randrange(len(documents))
    document = documents[index]
    starts = [0, *(match.end() for match in _LINE_END.finditer(document))]
    words = _words(document[starts[rng.randrange(len(starts))] :])
    while len(words) < count:
        index = (index + 1) % len(documents)
        words += _words(documents[index])
    return words[:count]


def _words(text: str) -> list[str]:
    words: list[str] = _WORD.findall(text)
    if words and not words[-1].endswith("\n"):
        words[-1] = words[-1].rstrip() + "\n"
    return words


def passages(documents: Iterable[str]) -> list[str]:
    """Cut documents into passages of a paragraph's size, which do not overlap; each text once.

    Short paragraphs are joined. Long ones are cut between sentences, or lines, or else words.
    """
    found: dict[str, None] = {}
    for document in documents:
        joined, num_words = "", 0
        for piece, separator in _pieces(document):
            size = len(piece.split())
            if num_words and num_words + size > PASSAGE_WORDS:
                found[joined] = None
                joined, num_words = "", 0
            joined = f"{joined}{separator}{piece}" if joined else piece
            num_words += size
        if joined:
            found[joined] = None
    return list(found)


def _pieces(document: str) -> Iterator[tuple[str, str]]:
    """Yield pieces of at most `PASSAGE_WORDS` words, and what separates each from the last."""
    for paragraph in _PARAGRAPH_END.split(document):
        if len(paragraph.split()) <= PASSAGE_WORDS:
            if stripped := paragraph.strip():
                yield stripped, "\n"
            continue
        separator = "\n"
        for sentence in _SENTENCE_START.split(paragraph):
            words = sentence.split()
            for first in range(0, len(words), PASSAGE_WORDS):
                yield " ".join(words[first : first + PASSAGE_WORDS]), separator
                separator = " "
