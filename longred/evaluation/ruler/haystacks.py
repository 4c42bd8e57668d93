"""What needles are hidden in, in the smallest pieces by which it may grow."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_WORD = re.compile(r"\S+\s*")
_LINE_END = re.compile(r"\n+")
_SENTENCE_END = re.compile(r"[.!?]\s+")


@dataclass(frozen=True)
class Haystack:
    """Text that needles can be put into.

    Attributes:
        text: returns the first units, without needles.
        splits_lines: whether a needle may stand between two sentences of the only line.
    """

    text: Callable[[int], str]
    splits_lines: bool

    def insert(
        self, needles: Sequence[str], num_units: int, depths: Sequence[float]
    ) -> tuple[str, list[float]]:
        """Put needles into the first `num_units` units.

        Args:
            needles: sentences.
            num_units: how much of the haystack is used.
            depths: where each needle is wanted, from 0 (in front) to 1 (at the end), in order.

        Returns:
            The text, and for each needle the share of the haystack's characters before it.
        """
        text = self.text(num_units)
        if not text:
            return "\n".join(needles), [0.0] * len(needles)
        places, separator = self._places(text)
        chosen = [places[min(int(depth * len(places)), len(places) - 1)] for depth in depths]
        result = text
        for needle, place in reversed(list(zip(needles, chosen, strict=True))):
            result = _insert(result, needle, place, separator)
        return result, [place / len(text) for place in chosen]

    def _places(self, text: str) -> tuple[list[int], str]:
        places, separator = _line_ends(text), "\n"
        if self.splits_lines and not places:
            places = [match.end() for match in _SENTENCE_END.finditer(text)]
            separator = " " if places else "\n"
        return [0, *places, len(text)], separator


def _line_ends(text: str) -> list[int]:
    """Return the places behind line ends, and behind the last of several in a row."""
    if "\n\n" in text:
        return [match.end() for match in _LINE_END.finditer(text)]
    *lines, _ = text.split("\n")
    return [*accumulate(len(line) + 1 for line in lines)]


def _insert(text: str, needle: str, place: int, separator: str) -> str:
    before, after = text[:place], text[place:]
    if before and not before[-1].isspace():
        before += separator
    return before + needle + (separator if after else "") + after


def noise_haystack() -> Haystack:
    """Return RULER's noise: the same five short sentences, one unit a line."""
    return Haystack(lambda num_units: "\n".join([NOISE] * num_units), splits_lines=False)


def line_haystack(lines: Iterator[str]) -> Haystack:
    """Return lines that are drawn when they are needed, always in the same order."""
    drawn: list[str] = []

    def text(num_units: int) -> str:
        drawn.extend(islice(lines, max(0, num_units - len(drawn))))
        return "\n".join(drawn[:num_units])

    return Haystack(text, splits_lines=False)


def text_haystack(words: Sequence[str]) -> Haystack:
    """Return running text, one unit a word; each word brings the white space behind it."""
    return Haystack(lambda num_units: "".join(words[:num_units]).rstrip(), splits_lines=True)


def flat_words(documents: Sequence[str], count: int) -> list[str]:
    """Return the first `count` words of all documents on one line.

    As in RULER, runs of white space are one space, and text that is too short is repeated.
    """
    words = [f"{word} " for document in documents for word in document.split()]
    num_uses = -(-count // len(words))
    return (words * num_uses)[:count]


def passage_words(documents: Sequence[str], rng: random.Random, count: int) -> list[str]:
    """Return `count` words from a drawn line of a drawn document on, white space as it is.

    Further documents follow in order, and all of them again where they are not enough.
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
