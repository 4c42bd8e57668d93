"""Needle in a haystack: one stated number, hidden in text and asked for at the end.

Wording and task shapes follow RULER (arXiv 2404.06654; NVIDIA/RULER, Apache-2.0) in its form for
base models: the task, then the beginning of the answer.
"""

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from longred.errors import ConfigError
from longred.evaluation.prompts import count_tokens
from longred.evaluation.ruler.fitting import generation_budget, largest_fit
from longred.evaluation.ruler.haystacks import Haystack, noise_haystack, text_haystack
from longred.evaluation.ruler.words import draw_key

NEEDLE = "One of the special magic numbers for {key} is: {value}."
TASK = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n{context}\n"
    "What is the special magic number for {key} mentioned in the provided text?"
)
PREFIX = "The special magic number for {key} mentioned in the provided text is"


def single_noise(
    rng: random.Random, *, length: int, tokenizer: Any, documents: Sequence[str] | None
) -> dict[str, Any]:
    """niah_single_1: one needle in repeated noise; word keys, seven-digit values."""
    del documents
    return _single(rng, noise_haystack(length), length=length, tokenizer=tokenizer)


def single_text(
    rng: random.Random, *, length: int, tokenizer: Any, documents: Sequence[str] | None
) -> dict[str, Any]:
    """niah_single_2: one needle in running text; word keys, seven-digit values."""
    if not documents or not any(document.strip() for document in documents):
        raise ConfigError(
            "evaluation.ruler.tasks: niah_single_2 hides its needles in held-out documents and "
            "there are none; raise data.validation_fraction or leave the task out"
        )
    haystack = text_haystack(documents, rng, length)
    return _single(rng, haystack, length=length, tokenizer=tokenizer)


def _single(
    rng: random.Random, haystack: Haystack, *, length: int, tokenizer: Any
) -> dict[str, Any]:
    key, value, depth = draw_key(rng), str(rng.randint(1_000_000, 9_999_999)), rng.random()
    needle = NEEDLE.format(key=key, value=value)
    prefix = PREFIX.format(key=key)

    def question(num_units: int) -> tuple[str, float]:
        context, place = haystack.insert(needle, num_units, depth)
        return TASK.format(context=context, key=key), place

    @cache
    def size(num_units: int) -> int:
        return count_tokens(tokenizer, f"{question(num_units)[0]} {prefix}")

    room = length - generation_budget(length)[1]
    num_units = largest_fit(size, room, len(haystack.units))
    # Another place of the needle can cost a token, so that sizes need not grow strictly.
    while size(num_units) > room:
        num_units -= 1
    text, place = question(num_units)
    return {
        "input": text,
        "prefix": prefix,
        "outputs": [value],
        "num_tokens": size(num_units),
        "num_units": num_units,
        "depth": round(place, 4),
    }
