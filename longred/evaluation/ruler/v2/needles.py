"""Numbers of ten digits, stated on one line each among many such lines: the basic niah tasks."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

from longred.evaluation.ruler.fitting import (
    Draft,
    SampleSpec,
    Start,
    Steps,
    fill,
    linear,
    per_unit,
)
from longred.evaluation.ruler.haystacks import Haystack
from longred.evaluation.ruler.words import DRAWS, below, distinct

NEEDLE = "One of the special magic numbers for {key} is: {value}."
ONE = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n{context}\n"
    "What is the special magic number for {key} mentioned in the provided text?"
)
ONE_PREFIX = "The special magic number for {key} mentioned in the provided text is"
MANY = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize them. "
    "I will quiz you about the numbers afterwards.\n{context}\n"
    "What are all the special magic numbers for {key} mentioned in the provided text?"
)
MANY_PREFIX = "The special magic numbers for {key} mentioned in the provided text are"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of `mk_niah_basic` and `mv_niah_basic`.

    Attributes:
        num_values: values of each key, those of the haystack included.
        keys: kind of key: `words` or `short_words`.
        budget: tokens reserved for the answer.
    """

    num_values: int
    keys: str = "words"
    budget: int = 128


def prepare(spec: SampleSpec) -> Start:
    """Return the function that starts samples."""
    settings: Settings = spec.settings
    task, prefix = (ONE, ONE_PREFIX) if settings.num_values == 1 else (MANY, MANY_PREFIX)
    probe = _haystack(settings, random.Random(0), set())  # noqa: S311
    tokens = linear(per_unit(probe.text, spec.count))

    def start(rng: random.Random, index: int) -> Steps:
        taken: set[str] = set()
        key = next(_keys(settings, rng, taken))
        values = [*islice(_values(rng, taken), settings.num_values)]
        depths = sorted(rng.random() for _ in values)
        haystack = _haystack(settings, random.Random(rng.getrandbits(64)), taken)  # noqa: S311
        needles = [NEEDLE.format(key=key, value=value) for value in values]
        answer_prefix = prefix.format(key=key)

        def draft(num_units: int) -> Draft:
            context, shares = haystack.insert(needles, num_units, depths)
            question = task.format(context=context, key=key)
            return Draft(
                f"{question} {answer_prefix}", values, [round(share, 4) for share in shares]
            )

        sample = yield from fill(
            spec, draft, answer_prefix, smallest=0, largest=spec.length, tokens=tokens
        )
        stops = [] if spec.parameters == "full" else ["\n"]
        return {**sample, "until": stops}

    return start


def _keys(settings: Settings, rng: random.Random, taken: set[str]) -> Iterator[str]:
    return distinct(partial(DRAWS[settings.keys], rng), taken)


def _values(rng: random.Random, taken: set[str]) -> Iterator[str]:
    return distinct(lambda: str(10**9 + below(rng, 9 * 10**9)), taken)


def _haystack(settings: Settings, rng: random.Random, taken: set[str]) -> Haystack:
    """Return lines in which every key has as many values as the one asked for; a unit is a line.

    The last keys have fewer where the number of lines is no multiple.
    """
    order = rng.getrandbits(64)
    # Two generators: the lines do not depend on the amounts that were asked for before.
    drawn_keys = _keys(settings, random.Random(rng.getrandbits(64)), taken)  # noqa: S311
    drawn_values = _values(random.Random(rng.getrandbits(64)), taken)  # noqa: S311
    keys: list[str] = []
    values: list[str] = []

    def text(num_units: int) -> str:
        values.extend(next(drawn_values) for _ in range(num_units - len(values)))
        num_keys = -(-num_units // settings.num_values)
        keys.extend(next(drawn_keys) for _ in range(num_keys - len(keys)))
        lines = [
            NEEDLE.format(key=keys[number % num_keys], value=values[number])
            for number in range(num_units)
        ]
        if settings.num_values > 1:
            random.Random(order).shuffle(lines)  # noqa: S311
        return "\n".join(lines)

    return Haystack(text)
