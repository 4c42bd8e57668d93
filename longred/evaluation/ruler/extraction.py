"""Most frequent words: of a numbered list (`cwe`), and of coded text (`fwe`)."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from typing import Any

import numpy as np

from longred.evaluation.counting import Listing
from longred.evaluation.ruler.fitting import (
    Draft,
    Revision,
    SampleSpec,
    Start,
    Steps,
    fill,
    linear,
    per_unit,
)
from longred.evaluation.ruler.words import (
    all_words,
    coded_word,
    distinct,
    list_words,
    mixed_words,
    uniform,
)

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
# Smallest text in which the fourth word of the distribution is more frequent than the fifth.
_SMALLEST_TEXT = math.ceil(_ZETA_2 / (1 / 16 - 1 / 25))


@dataclass(frozen=True, kw_only=True)
class ListSettings:
    """Parameters of `cwe`.

    Attributes:
        num_common: number of common words, which are the answer.
        repeats: occurrences of each common word, and of each other word.
        example_words: distinct words of the worked example.
        example_repeats: the same as `repeats`, for the example.
        budget: tokens reserved for the answer.
    """

    num_common: int = 10
    repeats: tuple[int, int] = (30, 3)
    example_words: int = 40
    example_repeats: tuple[int, int] = (10, 3)
    budget: int = 120


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Parameters of `fwe`.

    Attributes:
        word_length: letters of a coded word.
        tokens_per_word: tokens of the length for each word of the vocabulary.
        budget: tokens reserved for the answer.
    """

    word_length: int = 6
    tokens_per_word: int = 50
    budget: int = 50


def prepare_list(spec: SampleSpec) -> Start:
    """Return the function that starts samples of common word extraction.

    A sample that needs more words than RULER's list has gets invented words too. Then all of its
    words are drawn from both together, so that real words are no sign of the common ones.
    """
    settings: ListSettings = spec.settings
    rare = settings.repeats[1]
    largest = settings.num_common + spec.length // (2 * rare)
    prefix = LIST_PREFIX.format(count=settings.num_common)
    probe = [*list_words(random.Random(0), 256)]  # noqa: S311
    word_tokens = per_unit(
        lambda num_words: " ".join(_numbered(probe[:num_words], 0, (0, rare), 0)), spec.count, 128
    )
    before, after = LIST_TASK.format(context="\0", count=settings.num_common).split("\0")

    def start(rng: random.Random, index: int) -> Steps:
        order = rng.getrandbits(64)
        num_drawn = settings.example_words + largest
        sample = yield from filled(list_words(rng, num_drawn), order, largest)
        needed = settings.example_words + int(sample["num_units"])
        if needed <= len(all_words()):
            return sample
        # Invented words have other sizes, so a few more may fit.
        words = mixed_words(rng, min(num_drawn, needed * 5 // 4))
        return (yield from filled(iter(words), order, len(words) - settings.example_words))

    def filled(drawn: Iterator[str], order: int, largest: int) -> Steps:
        example_words = [*islice(drawn, settings.example_words)]
        example = _example(example_words, order, settings, spec.revision)
        words: list[str] = []

        def draft(num_words: int) -> Draft:
            words.extend(islice(drawn, max(0, num_words - len(words))))
            listed = _numbered(words[:num_words], settings.num_common, settings.repeats, order)
            prompt = Listing(example + before, listed, f"{after} {prefix}")
            return Draft(prompt, words[: settings.num_common])

        return fill(
            spec,
            draft,
            prefix,
            smallest=settings.num_common + 1,
            largest=largest,
            tokens=linear(word_tokens),
        )

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
    """Return a shuffled list of common and other words, each entry after its number."""
    entries = [*words[:num_common]] * repeats[0] + [*words[num_common:]] * repeats[1]
    numbers = _numbers(1 << len(entries).bit_length())
    shuffled = _shuffled(np.array(entries, dtype=object), order)
    return [*chain.from_iterable(zip(numbers, shuffled, strict=False))]


@cache
def _numbers(count: int) -> list[str]:
    return [f"{number}." for number in range(1, count + 1)]


def prepare_text(spec: SampleSpec) -> Start:
    """Return the function that starts samples of frequent word extraction.

    Word frequencies follow a zeta distribution with exponent 2. Dots replace the most frequent
    word; the next three are the answer.
    """
    settings: TextSettings = spec.settings

    def vocabulary_of(rng: random.Random) -> list[str]:
        words = distinct(lambda: coded_word(rng, settings.word_length))
        num_words = max(spec.length // settings.tokens_per_word, 8)
        return [DOTS, *islice(words, num_words - 1)]

    probe = vocabulary_of(random.Random(0))  # noqa: S311
    word_tokens = per_unit(lambda num_words: " ".join(_coded(probe, num_words, 0)), spec.count, 512)
    before, after = TEXT_TASK.split("{context}")

    def start(rng: random.Random, index: int) -> Steps:
        order = rng.getrandbits(64)
        vocabulary = vocabulary_of(rng)

        def draft(num_words: int) -> Draft:
            coded = _coded(vocabulary, num_words, order)
            prompt = Listing(before, coded, f"{after} {TEXT_PREFIX}")
            return Draft(prompt, vocabulary[1 : 1 + NUM_FREQUENT])

        return fill(
            spec,
            draft,
            TEXT_PREFIX,
            smallest=_SMALLEST_TEXT,
            largest=2 * spec.length,
            tokens=linear(word_tokens),
        )

    return start


def _coded(vocabulary: Sequence[str], num_words: int, order: int) -> list[str]:
    ranks = np.arange(1, len(vocabulary) + 1)
    counts = (num_words / (ranks * ranks * _ZETA_2)).astype(np.int64)
    return _shuffled(np.array(vocabulary, dtype=object).repeat(counts), order)


def _shuffled(entries: "np.ndarray[Any, np.dtype[np.object_]]", order: int) -> list[str]:
    """Return entries in random order, many times faster than `random.shuffle`."""
    places = uniform(order, len(entries)).argsort(kind="stable")
    shuffled: list[str] = entries[places].tolist()
    return shuffled
