"""Words that occur most often: in a numbered list (cwe), and in coded text (fwe)."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from typing import Any

import numpy as np

from longred.evaluation.counting import Listing
from longred.evaluation.ruler.fitting import Steps, fit, linear, per_unit
from longred.evaluation.ruler.request import Request, Revision, Start
from longred.evaluation.ruler.words import coded_word, distinct, list_words, uniform

LIST_TASK = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the {count} most common words in the above list?"
)
LIST_PREFIX = "Answer: The top {count} words that appear most often in the list are:"
TEXT_TASK = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
TEXT_PREFIX = (
    "Answer: According to the coded text above, the three most frequently appeared words are:"
)
DOTS = "..."
NUM_FREQUENT = 3

_ZETA_2 = math.pi**2 / 6
# From here on the fourth word of the distribution occurs more often than the fifth.
_SMALLEST_TEXT = math.ceil(_ZETA_2 / (1 / 16 - 1 / 25))


@dataclass(frozen=True, kw_only=True)
class ListSettings:
    """How often words occur in a list.

    Attributes:
        num_common: words that occur more often, and are asked for.
        repeats: how often they, and the others, occur.
        example_words: different words of the worked example.
        example_repeats: the same of its words.
        budget: tokens kept for the answer.
    """

    num_common: int = 10
    repeats: tuple[int, int] = (30, 3)
    example_words: int = 40
    example_repeats: tuple[int, int] = (10, 3)
    budget: int = 120


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """What coded text is made of.

    Attributes:
        word_length: letters of a coded word.
        tokens_per_word: of the length, for each word of the vocabulary.
        budget: tokens kept for the answer.
    """

    word_length: int = 6
    tokens_per_word: int = 50
    budget: int = 50


def prepare_list(request: Request) -> Start:
    """Return what begins a sample of common word extraction."""
    settings: ListSettings = request.settings
    rare = settings.repeats[1]
    prefix = LIST_PREFIX.format(count=settings.num_common)
    some = [*list_words(random.Random(0), 256)]  # noqa: S311
    word_tokens = per_unit(
        lambda num_words: " ".join(_numbered(some[:num_words], 0, (0, rare), 0)), request.count, 128
    )
    before, after = LIST_TASK.format(context="{context}", count=settings.num_common).split(
        "{context}"
    )

    def start(rng: random.Random, index: int) -> Steps:
        del index
        order = rng.getrandbits(64)
        largest = settings.num_common + request.length // (2 * rare)
        drawn = list_words(rng, settings.example_words + largest)
        shown = [*islice(drawn, settings.example_words)]
        example = _example(shown, order, settings, request.revision)
        words: list[str] = []

        @cache
        def question(num_words: int) -> Listing:
            words.extend(islice(drawn, max(0, num_words - len(words))))
            listed = _numbered(words[:num_words], settings.num_common, settings.repeats, order)
            return Listing(example + before, listed, f"{after} {prefix}")

        num_words, num_tokens = yield from fit(
            question,
            request.room,
            smallest=settings.num_common + 1,
            largest=largest,
            tokens=linear(word_tokens),
            slack=request.slack,
        )
        return {
            "input": str(question(num_words)).removesuffix(f" {prefix}"),
            "prefix": prefix,
            "outputs": words[: settings.num_common],
            "num_tokens": num_tokens,
            "num_units": num_words,
        }

    return start


def _example(words: Sequence[str], order: int, settings: ListSettings, revision: Revision) -> str:
    count = settings.num_common
    context = " ".join(_numbered(words, count, settings.example_repeats, order))
    question = f"{LIST_TASK} {LIST_PREFIX}".format(context=context, count=count)
    answer = " ".join(f"{number}. {word}" for number, word in enumerate(words[:count], start=1))
    gap = "" if revision == "paper" else " "
    return f"{question}{gap}{answer}\n"


def _numbered(
    words: Sequence[str], num_common: int, repeats: tuple[int, int], order: int
) -> list[str]:
    entries = [*words[:num_common]] * repeats[0] + [*words[num_common:]] * repeats[1]
    numbers = _numbers(1 << len(entries).bit_length())
    shuffled = _shuffled(np.array(entries, dtype=object), order)
    return [*chain.from_iterable(zip(numbers, shuffled, strict=False))]


@cache
def _numbers(count: int) -> list[str]:
    return [f"{number}." for number in range(1, count + 1)]


def prepare_text(request: Request) -> Start:
    """Return what begins a sample of frequent word extraction.

    The vocabulary's words occur by a zeta distribution with exponent 2; the most frequent is
    replaced by dots, and the next three are asked for.
    """
    settings: TextSettings = request.settings
    num_coded = max(request.length // settings.tokens_per_word, 8)
    coded = distinct(lambda: coded_word(letters, settings.word_length))
    letters = random.Random(0)  # noqa: S311
    some = [DOTS, *(next(coded) for _ in range(num_coded - 1))]
    unit_tokens = per_unit(
        lambda num_units: " ".join(_coded(some, num_units, 0)), request.count, 512
    )
    before, after = TEXT_TASK.split("{context}")

    def start(rng: random.Random, index: int) -> Steps:
        del index
        order = rng.getrandbits(64)
        words = distinct(lambda: coded_word(rng, settings.word_length))
        vocabulary = [DOTS, *(next(words) for _ in range(num_coded - 1))]

        @cache
        def question(num_units: int) -> Listing:
            return Listing(before, _coded(vocabulary, num_units, order), f"{after} {TEXT_PREFIX}")

        num_units, num_tokens = yield from fit(
            question,
            request.room,
            smallest=_SMALLEST_TEXT,
            largest=2 * request.length,
            tokens=linear(unit_tokens),
            slack=request.slack,
        )
        return {
            "input": str(question(num_units)).removesuffix(f" {TEXT_PREFIX}"),
            "prefix": TEXT_PREFIX,
            "outputs": vocabulary[1 : 1 + NUM_FREQUENT],
            "num_tokens": num_tokens,
            "num_units": num_units,
        }

    return start


def _coded(vocabulary: Sequence[str], num_units: int, order: int) -> list[str]:
    ranks = np.arange(1, len(vocabulary) + 1)
    counts = (num_units / (ranks * ranks * _ZETA_2)).astype(np.int64)
    return _shuffled(np.array(vocabulary, dtype=object).repeat(counts), order)


def _shuffled(entries: "np.ndarray[Any, np.dtype[np.object_]]", order: int) -> list[str]:
    """Return entries in random order, many times faster than `random.shuffle`."""
    places = uniform(order, len(entries)).argsort(kind="stable")
    found: list[str] = entries[places].tolist()
    return found
