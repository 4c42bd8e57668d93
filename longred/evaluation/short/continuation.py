"""Continuation: which lines follow the passage, its own or those of other documents."""

import random
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from longred.evaluation.short.passages import Passages, Text, choice_sample

NUM_CHOICES, NUM_TOKENS, NUM_TRIES = 4, 24, 40
_LINE = re.compile(r"(?<=\S)\n(?=[ \t]*\S)")
_INDENT = re.compile(r"\n[ \t]*")


def continuation(passages: Passages, seed: int) -> Iterator[dict[str, Any]]:
    """Yield samples whose wrong answers are equally indented lines with the same token count."""
    rng = random.Random(f"{seed}-continuation")  # noqa: S311
    places = [[m.start() for m in _LINE.finditer(text.text)] for text in passages.texts]
    sites = [(number, place) for number, found in enumerate(places) for place in found]
    num_tokens = min(NUM_TOKENS, passages.window // 4)
    for text, place in passages.shuffled(sites, rng):
        start = text.passage_start(place, passages.context_tokens(rng) - num_tokens)
        before, answer = text.text[start:place], text.after(place, num_tokens)
        if not before.strip() or answer == text.text[place:]:
            continue
        context = passages.context(before)
        size = context.size_of(answer)
        if size is None:
            continue
        others = _others(passages, text, sites, rng, answer, num_tokens)
        fitting = (other for other in others if context.size_of(other) == size)
        chosen = list(islice(fitting, NUM_CHOICES - 1))
        if len(chosen) == NUM_CHOICES - 1:
            yield {"source": text.path, **choice_sample(rng, before, answer, chosen)}


def _others(
    passages: Passages,
    text: Text,
    sites: list[tuple[int, int]],
    rng: random.Random,
    answer: str,
    num_tokens: int,
) -> list[str]:
    """Return continuations from other documents, those with the same indentation first."""
    found: list[str] = []
    for _ in range(NUM_TRIES):
        number, place = rng.choice(sites)
        other = passages.texts[number]
        candidate = other.after(place, num_tokens)
        if other is not text and candidate != answer and candidate not in found:
            found.append(candidate)
    indent = _INDENT.match(answer)
    return sorted(found, key=lambda c: (_INDENT.match(c) or [None])[0] != (indent or [None])[0])
