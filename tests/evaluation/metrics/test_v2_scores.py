"""The metrics of RULER v2, on cases worked out by hand and against a slow edit distance."""

import random
from collections.abc import Sequence
from functools import cache

import pytest

from longred.evaluation.metrics.ruler_v2 import (
    answer_match,
    any_answer_match,
    chosen_letter,
    last_answer_match,
    letter_match,
    word_error_rate,
)
from longred.evaluation.results import score


def slow_distance(words: tuple[str, ...], others: tuple[str, ...]) -> int:
    """Edit distance by its definition."""

    @cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        changed = distance(i - 1, j - 1) + (words[i - 1] != others[j - 1])
        return min(changed, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(words), len(others))


def test_word_error_rate_is_the_edit_distance_per_word() -> None:
    rng = random.Random(0)
    for _ in range(300):
        words = tuple(rng.choices("abcde", k=rng.randint(0, 12)))
        others = tuple(rng.choices("abcdef", k=rng.randint(1, 9)))
        expected = slow_distance(words, others) / len(others)
        assert word_error_rate("  ".join(words), "\n".join(others)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "reference", "rate"),
    [
        ("the cat sat", "the cat sat", 0.0),
        ("the dog sat", "the cat sat", 1 / 3),
        ("cat sat", "the cat sat", 1 / 3),
        ("so the cat sat down", "the cat sat", 2 / 3),
        ("", "the cat", 1.0),
        ("a b c d e", "x", 5.0),
        ("a", " ", float("inf")),
    ],
)
def test_word_error_rate_by_hand(text: str, reference: str, rate: float) -> None:
    assert word_error_rate(text, reference) == pytest.approx(rate)


# prediction, references, all of them, of the last paragraph, any of them
CASES = [
    (" 1234567890.", ["1234567890"], 100.0, 100.0, 100.0),
    ("THE CAT", ["the cat"], 100.0, 100.0, 100.0),
    ("a dog sat here", ["the cat sat here"], 50.0, 50.0, 50.0),
    ("1 2", ["1", "2", "3", "4"], 50.0, 50.0, 100.0),
    # Far too many words are worth nothing, not less than nothing.
    ("x " * 50, ["the cat"], 0.0, 0.0, 0.0),
    ("", ["the cat"], 0.0, 0.0, 0.0),
    # The whole text counts, also before a last "Answer:".
    ("the cat\nAnswer: a dog", ["the cat"], 100.0, 100.0, 100.0),
    ("the cat\n\nand a dog", ["the cat"], 100.0, 0.0, 100.0),
    ("no\n\nthe cat sat", ["the cat ate"], 100 / 3, 200 / 3, 100 / 3),
    # Copied documents do not answer.
    ("Document 17:\nthe cat\n\na dog", ["the cat"], 100.0, 0.0, 0.0),
    ("Document 17:\nthe cat\nsat\n\nthe cat", ["the cat"], 100.0, 100.0, 100.0),
]


@pytest.mark.parametrize(("prediction", "references", "all_of", "last", "any_of"), CASES)
def test_scores_of_one_answer(
    prediction: str, references: Sequence[str], all_of: float, last: float, any_of: float
) -> None:
    assert answer_match(prediction, references) == pytest.approx(all_of)
    assert last_answer_match(prediction, references) == pytest.approx(last)
    assert any_answer_match(prediction, references) == pytest.approx(any_of)
    found = score("last_answer_match", {"outputs": list(references)}, [prediction]).percent
    assert found == pytest.approx(last)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r" \boxed{B}", "B"),
        (r"\boxed{A}, no: \boxed{c}", "C"),
        (r"\boxed{\text{(D)}}", "D"),
        (r"\boxed{A or B}", "B"),
        ("So. The final answer is (C)", "C"),
        ("The final answer is C\nbut more follows", None),
        ("**Answer:** b", "B"),
        ("Answer: A\nAnswer: _D_", "D"),
        (r"\boxed{} Answer: C", "C"),
        (r"\boxed{none} Answer: C", "C"),
        ("Answer: Because", None),
        (r"\boxed{A", None),
        (r"\boxed A", None),
        ("A", None),
        ("", None),
    ],
)
def test_letters(text: str, letter: str | None) -> None:
    assert chosen_letter(text) == letter
    for wanted in "ABCD":
        assert letter_match(text, [wanted]) == (100.0 if letter == wanted else 0.0)
