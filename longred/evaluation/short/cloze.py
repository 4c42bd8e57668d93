"""Cloze: which word of the passage comes next, where it has already occurred once."""

import keyword
import random
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from longred.evaluation.short.passages import Passages, Text, choice_sample

NUM_CHOICES = 4
_WORD = re.compile(r"\b[A-Za-z_][A-Za-z0-9_]{3,}\b")


def cloze(passages: Passages, seed: int) -> Iterator[dict[str, Any]]:
    """Yield samples whose wrong answers are other words of the same passage and token count."""
    rng = random.Random(f"{seed}-cloze")  # noqa: S311
    sites = [
        (number, match.start())
        for number, text in enumerate(passages.texts)
        for match in _WORD.finditer(text.text)
        if not keyword.iskeyword(match[0])
    ]
    for text, place in passages.shuffled(sites, rng):
        sample = _sample(passages, text, place, rng)
        if sample is not None:
            yield {"source": text.path, **sample}


def _sample(
    passages: Passages, text: Text, place: int, rng: random.Random
) -> dict[str, Any] | None:
    wanted = next(_WORD.finditer(text.text, place))[0]
    start = text.passage_start(place, passages.context_tokens(rng))
    before = text.text[start:place]
    space = ""
    if before.endswith(" "):
        before, space = before[:-1], " "
    if not before or before[-1].isspace():
        return None
    seen = {word for word in _WORD.findall(before) if not keyword.iskeyword(word)}
    if wanted not in seen:
        return None
    context = passages.context(before)
    size = context.size_of(space + wanted)
    if size is None:
        return None
    others = sorted(word for word in seen if word.lower() != wanted.lower())
    rng.shuffle(others)
    fitting = (space + word for word in others if context.size_of(space + word) == size)
    chosen = list(islice(fitting, NUM_CHOICES - 1))
    if len(chosen) < NUM_CHOICES - 1:
        return None
    return choice_sample(rng, before, space + wanted, chosen)
