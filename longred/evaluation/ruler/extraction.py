"""Words that occur most often: in a numbered list (cwe), and in coded text (fwe)."""

import math
import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np

from longred.evaluation.ruler.fitting import Steps, fit, linear, per_unit
from longred.evaluation.ruler.request import Request, Revision, Start
from longred.evaluation.ruler.words import coded_word, distinct, list_words

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
        lambda num_words: _numbered(some[:num_words], 0, (0, rare), 0), request.count, 128
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
        def question(num_words: int) -> str:
            words.extend(islice(drawn, max(0, num_words - len(words))))
            context = _numbered(words[:num_words], settings.num_common, settings.repeats, order)
            return example + LIST_TASK.format(context=context, count=settings.num_common)

        num_words, num_tokens = yield from fit(
            lambda num_words: f"{question(num_words)} {prefix}",
            request.room,
            smallest=settings.num_common + 1,
            largest=largest,
            tokens=linear(word_tokens),
            slack=request.slack,
        )
        return {
            "input": question(num_words),
            "prefix": prefix,
            "outputs": words[: settings.num_common],
            "num_tokens": num_tokens,
            "num_units": num_words,
        }

    return start


def _example(words: Sequence[str], order: int, settings: ListSettings, revision: Revision) -> str:
    count = settings.num_common
    context = _numbered(words, count, settings.example_repeats, order)
    question = f"{LIST_TASK} {LIST_PREFIX}".format(context=context, count=count)
    answer = " ".join(f"{number}. {word}" for number, word in enumerate(words[:count], start=1))
    gap = "" if revision == "paper" else " "
    return f"{question}{gap}{answer}\n"


def _numbered(words: Sequence[str], num_common: int, repeats: tuple[int, int], order: int) -> str:
    entries = [*words[:num_common]] * repeats[0] + [*words[num_common:]] * repeats[1]
    numbers = _numbers(1 << len(entries).bit_length())
    return " ".join(map(operator.add, numbers, _shuffled(entries, order)))


@cache
def _numbers(count: int) -> list[str]:
    return [f"{number}. " for number in range(1, count + 1)]


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
    unit_tokens = per_unit(lambda num_units: _coded_text(some, num_units, 0), request.count, 512)

    def start(rng: random.Random, index: int) -> Steps:
        del index
        order = rng.getrandbits(64)
        words = distinct(lambda: coded_word(rng, settings.word_length))
        vocabulary = [DOTS, *(next(words) for _ in range(num_coded - 1))]

        @cache
        def question(num_units: int) -> str:
            return TEXT_TASK.format(context=_coded_text(vocabulary, num_units, order))

        num_units, num_tokens = yield from fit(
            lambda num_units: f"{question(num_units)} {TEXT_PREFIX}",
            request.room,
            smallest=_SMALLEST_TEXT,
            largest=2 * request.length,
            tokens=linear(unit_tokens),
            slack=request.slack,
        )
        return {
            "input": question(num_units),
            "prefix": TEXT_PREFIX,
            "outputs": vocabulary[1 : 1 + NUM_FREQUENT],
            "num_tokens": num_tokens,
            "num_units": num_units,
        }

    return start


def _coded_text(vocabulary: Sequence[str], num_units: int, order: int) -> str:
    entries: list[str] = []
    for rank, word in enumerate(vocabulary, start=1):
        entries += [word] * int(num_units / (rank * rank * _ZETA_2))
    return " ".join(_shuffled(entries, order))


def _shuffled(entries: Sequence[str], order: int) -> list[str]:
    """Return entries in random order, many times faster than `random.shuffle`."""
    draw = random.Random(order).random  # noqa: S311
    keys = np.array([draw() for _ in entries])
    return [*map(entries.__getitem__, keys.argsort(kind="stable").tolist())]
