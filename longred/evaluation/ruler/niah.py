"""Needles in a haystack: stated values, hidden in text and asked for at the end."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

from longred.evaluation.ruler.fitting import Steps, cumulative, fit, linear, per_unit
from longred.evaluation.ruler.haystacks import (
    Haystack,
    flat_words,
    line_haystack,
    noise_haystack,
    passage_words,
    text_haystack,
)
from longred.evaluation.ruler.request import Request, Start
from longred.evaluation.ruler.words import DRAWS, distinct

NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {query} mentioned in the provided text?"
)
ONE_PREFIX = "The special magic {kind} for {query} mentioned in the provided text is"
MANY = (
    "Some special magic {kind}s are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind}s afterwards.\n{context}\n"
    "What are all the special magic {kind}s for {query} mentioned in the provided text?"
)
MANY_PREFIX = "The special magic {kind}s for {query} mentioned in the provided text are"

_DEPTHS = tuple(round(100 * step / 39) / 100 for step in range(40))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is hidden where.

    Attributes:
        haystack: repeated noise, text, or further needles.
        keys: kind of key: `words`, `short_words` or `uuids`.
        values: kind of value: `numbers` or `uuids`.
        num_keys: keys that are hidden.
        num_values: values of each key.
        num_queries: keys that are asked for.
        budget: tokens kept for the answer.
    """

    haystack: Literal["noise", "text", "needles"]
    keys: str = "words"
    values: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    budget: int = 128


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """How haystacks of a request are made.

    Attributes:
        build: makes a sample's haystack; words in the set are taken already.
        tokens: estimate of the tokens of its first units.
        on_grid: whether depths are RULER's forty, all different, and not any.
    """

    build: Callable[[random.Random, set[str]], Haystack]
    tokens: Callable[[int], float]
    on_grid: bool = False


@dataclass(frozen=True, kw_only=True)
class _Needles:
    """Drawn needles: sentences by depth, and which of them answer the query."""

    sentences: list[str]
    depths: list[float]
    query: str
    answers: list[str]
    answered_by: list[int]


def prepare(request: Request) -> Start:
    """Return what begins a sample of any of the eight tasks."""
    settings: Settings = request.settings
    stack = _STACKS[settings.haystack](request)
    kind = settings.values.removesuffix("s")
    one = settings.num_queries * settings.num_values == 1
    task, prefix = (ONE, ONE_PREFIX) if one else (MANY, MANY_PREFIX)

    def start(rng: random.Random, index: int) -> Steps:
        del index
        taken: set[str] = set()
        haystack = stack.build(rng, taken)
        needles = _draw(settings, rng, taken, on_grid=stack.on_grid)
        asked = prefix.format(kind=kind, query=needles.query)

        @cache
        def question(num_units: int) -> tuple[str, list[float]]:
            context, places = haystack.insert(needles.sentences, num_units, needles.depths)
            return task.format(kind=kind, context=context, query=needles.query), places

        num_units, num_tokens = yield from fit(
            lambda num_units: f"{question(num_units)[0]} {asked}",
            request.room,
            smallest=0,
            largest=request.length,
            tokens=stack.tokens,
            slack=request.slack,
        )
        text, places = question(num_units)
        return {
            "input": text,
            "prefix": asked,
            "outputs": needles.answers,
            "num_tokens": num_tokens,
            "num_units": num_units,
            "depths": [round(places[number], 4) for number in needles.answered_by],
        }

    return start


def _draw(settings: Settings, rng: random.Random, taken: set[str], *, on_grid: bool) -> _Needles:
    draw_key = distinct(partial(DRAWS[settings.keys], rng), taken)
    draw_value = distinct(partial(DRAWS[settings.values], rng), taken)
    keys, pairs = [], []
    for _ in range(settings.num_keys):
        keys.append(next(draw_key))
        pairs += [(keys[-1], next(draw_value)) for _ in range(settings.num_values)]
    rng.shuffle(pairs)
    if on_grid:
        depths = sorted(rng.sample(_DEPTHS, len(pairs)))
    else:
        depths = sorted(rng.random() for _ in pairs)
    kind = settings.values.removesuffix("s")
    queries = rng.sample(keys, settings.num_queries)
    answered_by = [n for query in queries for n, (key, _) in enumerate(pairs) if key == query]
    return _Needles(
        sentences=[NEEDLE.format(kind=kind, key=key, value=value) for key, value in pairs],
        depths=depths,
        query=_listed(queries),
        answers=[pairs[number][1] for number in answered_by],
        answered_by=answered_by,
    )


def _listed(queries: Sequence[str]) -> str:
    return queries[0] if len(queries) == 1 else f"{', '.join(queries[:-1])}, and {queries[-1]}"


def _noise(request: Request) -> _Stack:
    haystack = noise_haystack()
    return _Stack(
        build=lambda rng, taken: haystack, tokens=linear(per_unit(haystack.text, request.count))
    )


def _needles(request: Request) -> _Stack:
    settings: Settings = request.settings
    line = NEEDLE.format(kind=settings.values.removesuffix("s"), key="%s", value="%s")

    def build(rng: random.Random, taken: set[str]) -> Haystack:
        # Lines are drawn when they are needed, after everything else of a sample.
        own = random.Random(rng.getrandbits(64))  # noqa: S311
        keys = distinct(partial(DRAWS[settings.keys], own), taken)
        values = distinct(partial(DRAWS[settings.values], own), taken)
        return line_haystack(line % pair for pair in zip(keys, values, strict=False))

    probe = build(random.Random(0), set())  # noqa: S311
    return _Stack(build=build, tokens=linear(per_unit(probe.text, request.count)))


def _text(request: Request) -> _Stack:
    documents = request.haystack
    if request.parameters == "compact":
        return _Stack(
            build=lambda rng, taken: text_haystack(passage_words(documents, rng, request.length)),
            tokens=linear(1.0),
        )
    words = flat_words(documents, request.length)
    return _Stack(
        build=lambda rng, taken: text_haystack(words),
        tokens=cumulative(words, request.count),
        on_grid=True,
    )


_STACKS: dict[str, Callable[[Request], _Stack]] = {
    "noise": _noise,
    "text": _text,
    "needles": _needles,
}
