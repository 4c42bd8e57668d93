"""Metrics of RULER and, by name, those of RULER v2: the score of one answer in percent."""

import re
from collections.abc import Callable, Sequence

from longred.evaluation.metrics import ruler_v2

_CONTROL = re.compile(r"[\x00-\x1f]")


def recall(prediction: str, references: Sequence[str]) -> float:
    """Return the percentage of references that a prediction contains.

    Source: RULER's `string_match_all`.
    """
    return 100.0 * sum(_contained(prediction, references)) / len(references)


def any_match(prediction: str, references: Sequence[str]) -> float:
    """Return 100 if a prediction contains any reference, else 0.

    Source: RULER's `string_match_part`.
    """
    return 100.0 if any(_contained(prediction, references)) else 0.0


def _contained(prediction: str, references: Sequence[str]) -> list[bool]:
    """Return whether each reference is in a prediction, ignoring case; cleans it as RULER does."""
    text = _CONTROL.sub("\n", prediction.strip()).strip().lower()
    return [reference.lower() in text for reference in references]


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "recall": recall,
    "any_match": any_match,
    "answer_match": ruler_v2.answer_match,
    "last_answer_match": ruler_v2.last_answer_match,
    "any_answer_match": ruler_v2.any_answer_match,
    "letter_match": ruler_v2.letter_match,
}
"""Name → score of one prediction against its references, in percent."""
