"""How answers are scored: which references occur in them, ignoring case.

Source: RULER's `string_match_all` and `string_match_part`, and what it does to an answer before.
"""

import re
from collections.abc import Callable, Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")


def recall(prediction: str, references: Sequence[str]) -> float:
    """Return the share of references that occur in a prediction, in percent."""
    found = _found(prediction, references)
    return 100.0 * sum(found) / len(found)


def any_match(prediction: str, references: Sequence[str]) -> float:
    """Return 100 if any reference occurs in a prediction, else 0."""
    return 100.0 if any(_found(prediction, references)) else 0.0


def _found(prediction: str, references: Sequence[str]) -> list[bool]:
    text = _CONTROL.sub("\n", prediction.strip()).strip().lower()
    return [reference.lower() in text for reference in references]


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "recall": recall,
    "any_match": any_match,
}
"""Name → score of one prediction against its references, in percent."""
