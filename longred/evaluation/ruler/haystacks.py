"""What needles are hidden in: repeated noise sentences, or text from held-out documents."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_WORD = re.compile(r"\S+\s*")
_LINE_END = re.compile(r"\n+")
_SENTENCE_END = re.compile(r"[.!?]\s+")


@dataclass(frozen=True)
class Haystack:
    """Text in the smallest pieces by which it may grow.

    Attributes:
        units: pieces in order, each with the white space that follows it.
        splits_lines: whether a needle may stand between two sentences of the only line.
    """

    units: tuple[str, ...]
    splits_lines: bool

    def insert(self, needle: str, num_units: int, depth: float) -> tuple[str, float]:
        """Put a needle into the first `num_units` pieces.

        Args:
            needle: a sentence.
            num_units: how much of the haystack is used.
            depth: where the needle is wanted, from 0 (in front) to 1 (at the end).

        Returns:
            The text, and the share of the haystack's characters that stand before the needle.
        """
        text = "".join(self.units[:num_units]).rstrip()
        if not text:
            return needle, 0.0
        places = [match.end() for match in _LINE_END.finditer(text)]
        separator = "\n"
        if self.splits_lines and not places:
            places = [match.end() for match in _SENTENCE_END.finditer(text)]
            separator = " " if places else "\n"
        places = [0, *places, len(text)]
        place = places[min(int(depth * len(places)), len(places) - 1)]
        before, after = text[:place], text[place:]
        if before and not before[-1].isspace():
            before += separator
        if after:
            needle += separator
        return before + needle + after, place / len(text)


def noise_haystack(num_units: int) -> Haystack:
    """Return RULER's noise: the same five short sentences, one unit a line."""
    return Haystack((NOISE + "\n",) * num_units, splits_lines=False)


def text_haystack(documents: Sequence[str], rng: random.Random, num_units: int) -> Haystack:
    """Return running text from a drawn line of a drawn document on, one unit a word.

    Further documents follow in order, and all of them again where they are not enough.
    """
    index = rng.randrange(len(documents))
    document = documents[index]
    starts = [0, *(match.end() for match in _LINE_END.finditer(document))]
    units = _words(document[starts[rng.randrange(len(starts))] :])
    while len(units) < num_units:
        index = (index + 1) % len(documents)
        units += _words(documents[index])
    return Haystack(tuple(units[:num_units]), splits_lines=True)


def _words(text: str) -> list[str]:
    words: list[str] = _WORD.findall(text)
    if words and not words[-1].endswith("\n"):
        words[-1] = words[-1].rstrip() + "\n"
    return words
