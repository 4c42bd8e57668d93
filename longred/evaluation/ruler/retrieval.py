"""Retrieval: values that are stated in a haystack and asked for later; RULER's `niah` tasks."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from longred.evaluation.ruler import haystacks
from longred.evaluation.ruler.fitting import (
    Draft,
    SampleSpec,
    Start,
    Steps,
    cumulative,
    fill,
    linear,
    per_unit,
)
from longred.evaluation.ruler.haystacks import Haystack
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
# RULER's grid of depths, for full parameters.
_DEPTHS = tuple(round(100 * step / 39) / 100 for step in range(40))


@dataclass(frozen=True, kw_only=True)
class NeedleSettings:
    """Parameters of the `niah` tasks.

    Attributes:
        haystack: repeated noise, text, or further needles.
        keys: kind of key: `words`, `short_words` or `uuids`.
        values: kind of value: `numbers` or `uuids`.
        num_keys: hidden keys.
        num_values: values of each key.
        num_queries: keys that the question asks for.
        budget: tokens reserved for the answer.
    """

    haystack: Literal["noise", "text", "needles"]
    keys: str = "words"
    values: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    budget: int = 128

    @property
    def kind(self) -> str:
        """Word for a value in the prompts."""
        return self.values.removesuffix("s")


def prepare_needles(spec: SampleSpec) -> Start:
    """Return the function that starts samples of a `niah` task."""
    settings: NeedleSettings = spec.settings
    build_haystack, haystack_tokens = _haystacks(spec)
    is_single = settings.num_queries * settings.num_values == 1
    task, prefix = (ONE, ONE_PREFIX) if is_single else (MANY, MANY_PREFIX)

    def start(rng: random.Random, index: int) -> Steps:
        taken: set[str] = set()
        haystack = build_haystack(rng, taken)
        draw_key = distinct(partial(DRAWS[settings.keys], rng), taken)
        draw_value = distinct(partial(DRAWS[settings.values], rng), taken)
        keys, pairs = [], []
        for _ in range(settings.num_keys):
            keys.append(next(draw_key))
            pairs += [(keys[-1], next(draw_value)) for _ in range(settings.num_values)]
        rng.shuffle(pairs)
        if settings.haystack == "text" and spec.parameters == "full":
            depths = sorted(rng.sample(_DEPTHS, len(pairs)))
        else:
            depths = sorted(rng.random() for _ in pairs)
        needles = [NEEDLE.format(kind=settings.kind, key=key, value=value) for key, value in pairs]
        queries = rng.sample(keys, settings.num_queries)
        answers = [n for asked in queries for n, (key, _) in enumerate(pairs) if key == asked]
        query = queries[0]
        if len(queries) > 1:
            query = f"{', '.join(queries[:-1])}, and {queries[-1]}"
        answer_prefix = prefix.format(kind=settings.kind, query=query)

        def draft(num_units: int) -> Draft:
            context, shares = haystack.insert(needles, num_units, depths)
            question = task.format(kind=settings.kind, context=context, query=query)
            return Draft(
                f"{question} {answer_prefix}",
                outputs=[pairs[number][1] for number in answers],
                depths=[round(shares[number], 4) for number in answers],
            )

        return fill(
            spec, draft, answer_prefix, smallest=0, largest=spec.length, tokens=haystack_tokens
        )

    return start


def _haystacks(
    spec: SampleSpec,
) -> tuple[Callable[[random.Random, set[str]], Haystack], Callable[[int], float]]:
    """Return a function that creates a sample's haystack, and an estimate of its tokens.

    The haystack avoids the words in the set; the estimate is for the first n units.
    """
    settings: NeedleSettings = spec.settings

    def build_noise(rng: random.Random, taken: set[str]) -> Haystack:
        return haystacks.noise_haystack()

    def build_needles(rng: random.Random, taken: set[str]) -> Haystack:
        # Lines are drawn on demand, after all other draws of a sample.
        own_rng = random.Random(rng.getrandbits(64))  # noqa: S311
        pairs = draw_pairs(settings.keys, settings.values, own_rng, taken)
        return haystacks.line_haystack(
            NEEDLE.format(kind=settings.kind, key=key, value=value) for key, value in pairs
        )

    def build_passage(rng: random.Random, taken: set[str]) -> Haystack:
        words = haystacks.passage_words(spec.haystack, rng, spec.length)
        return haystacks.text_haystack(words)

    if settings.haystack == "text":
        if spec.parameters == "compact":
            return build_passage, linear(1.0)
        words = haystacks.flat_words(spec.haystack, spec.length)
        haystack = haystacks.text_haystack(words)
        return lambda rng, taken: haystack, cumulative(words, spec.count)
    build = build_noise if settings.haystack == "noise" else build_needles
    probe = build(random.Random(0), set())  # noqa: S311
    return build, linear(per_unit(probe.text, spec.count))


def draw_pairs(
    keys: str, values: str, rng: random.Random, taken: set[str]
) -> Iterator[tuple[str, str]]:
    """Yield pairs of a key and a value of these kinds, all different and none in `taken`."""
    drawn_keys = distinct(partial(DRAWS[keys], rng), taken)
    drawn_values = distinct(partial(DRAWS[values], rng), taken)
    return zip(drawn_keys, drawn_values, strict=False)
