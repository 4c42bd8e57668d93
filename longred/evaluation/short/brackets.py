"""Brackets: which bracket closes next, where several may be open."""

import random
from collections.abc import Iterator
from itertools import count
from typing import Any

from longred.evaluation.short.passages import Passages, Text

CLOSING = {"(": ")", "[": "]", "{": "}"}
CHOICES = list(CLOSING.values())
Site = tuple[int, int, int]


def brackets(passages: Passages, seed: int) -> Iterator[dict[str, Any]]:
    """Yield samples that ask for each kind of bracket in turn, so that every answer is as frequent.

    Where one kind runs out, its places are asked again behind passages of other lengths.
    """
    rng = random.Random(f"{seed}-brackets")  # noqa: S311
    sites: dict[str, list[Site]] = {bracket: [] for bracket in CHOICES}
    for number, text in enumerate(passages.texts):
        for opened, closed in _pairs(text.text):
            if text.ends[text.tokens_before(closed)] == closed + 1 and _is_free(text, closed):
                sites[text.text[closed]].append((number, opened, closed))
    queues = [_samples(passages, sites[bracket], rng) for bracket in CHOICES]
    while True:
        for queue in queues:
            sample = next(queue, None)
            if sample is None:
                return
            yield sample


def _is_free(text: Text, closed: int) -> bool:
    """Return whether a closing bracket is a token of its own behind other text."""
    place = text.tokens_before(closed)
    return text.starts[place] == closed and not text.text[closed - 1].isspace()


def _samples(passages: Passages, sites: list[Site], rng: random.Random) -> Iterator[dict[str, Any]]:
    for attempt in count():
        rng.shuffle(sites)
        found = False
        for number, opened, closed in sites:
            text = passages.texts[number]
            start = text.passage_start(closed, passages.context_tokens(rng))
            if opened < start:
                continue
            context = passages.context(text.text[start:closed])
            if any(context.size_of(choice) != 1 for choice in CHOICES):
                continue
            found = True
            answer = CHOICES.index(text.text[closed])
            yield {
                "source": text.path,
                "input": context.text,
                "choices": CHOICES,
                "answer": answer,
                "repeats": attempt,
            }
        if not found:
            return


def _pairs(text: str) -> Iterator[tuple[int, int]]:
    """Yield the places of an opening bracket and of the closing one that matches it.

    Brackets inside strings can break the nesting; what was open is then forgotten.
    """
    opened: list[int] = []
    for place, character in enumerate(text):
        if character in CLOSING:
            opened.append(place)
        elif character in CHOICES:
            if opened and CLOSING[text[opened[-1]]] == character:
                start = opened.pop()
                if place > start + 1:
                    yield start, place
            else:
                opened.clear()
