"""Metrics of RULER v2: word error rate against references, and the letter of a choice.

Source: `eval_ruler2` and `eval_mcq` of NVIDIA-NeMo/Skills, which read the whole generated text. An
earlier branch of it read only what follows the last `Answer:`. Letters of other alphabets, which
`eval_mcq` also reads, are not read here.
"""

import re
from collections.abc import Sequence

import numpy as np

_COPIED_DOCUMENT = re.compile(r"Document \d+:(?:.*\n)+?\n")
_FINAL = re.compile(r"The final answer is (.+)$")
_LONE_LETTER = re.compile(r"\b[A-Z]\b")
_LETTER_OF_ANSWER = re.compile(
    r"[*_]{0,2}Answer[*_]{0,2}\s*:[\s*_]{0,2}\s*([A-Z])(?![a-zA-Z0-9])", re.IGNORECASE
)


def answer_match(prediction: str, references: Sequence[str]) -> float:
    """Return the mean similarity of a prediction to its references, in percent.

    Source: match type `all`.
    """
    return 100.0 * sum(_similarities(prediction, references)) / len(references)


def last_answer_match(prediction: str, references: Sequence[str]) -> float:
    """Return `answer_match` of the last paragraph of a prediction.

    Source: match type `2steps`.
    """
    return answer_match(prediction.split("\n\n")[-1], references)


def any_answer_match(prediction: str, references: Sequence[str]) -> float:
    """Return the similarity to the most similar reference, in percent; skip copied documents.

    Source: match type `part`.
    """
    return 100.0 * max(_similarities(_COPIED_DOCUMENT.sub("", prediction), references))


def letter_match(prediction: str, references: Sequence[str]) -> float:
    """Return 100 if a prediction chooses the letter of the reference, else 0.

    Source: evaluator `multichoice`.
    """
    return 100.0 if chosen_letter(prediction) == references[0] else 0.0


def chosen_letter(text: str) -> str | None:
    r"""Return the letter that a text chooses, or None.

    It is read from the last `\boxed{}`, else from a final `The final answer is`. If that holds no
    letter, the last letter behind `Answer:` counts.
    """
    found = _boxed(text)
    if found is None:
        found = next(iter(_FINAL.findall(text)[-1:]), None)
    found = (found or "").strip()
    if len(found) == 1:
        return found.upper()
    letters = _LONE_LETTER.findall(found) or _LETTER_OF_ANSWER.findall(text)
    return letters[-1].upper() if letters else None


def _boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{}`, or None if it is not complete."""
    mark = r"\boxed"
    start = text.rfind(mark)
    if start < 0 or not text.startswith("{", start + len(mark)):
        return None
    first = start + len(mark) + 1
    depth = 1
    for place in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[first:place]
    return None


def _similarities(prediction: str, references: Sequence[str]) -> list[float]:
    """Return 1 for each contained reference, else 1 minus the word error rate, at least 0."""
    text = prediction.lower()
    return [
        1.0 if reference in text else max(0.0, 1.0 - word_error_rate(text, reference))
        for reference in map(str.lower, references)
    ]


def word_error_rate(text: str, reference: str) -> float:
    """Return the edit distance between the words of two texts, per word of the reference.

    Words are separated by white space. Infinite if the reference has none.
    """
    words = reference.split()
    return _edit_distance(text.split(), words) / len(words) if words else float("inf")


def _edit_distance(words: Sequence[str], others: Sequence[str]) -> int:
    """Return the fewest insertions, deletions and substitutions between two lists of words."""
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int64)
    steps = np.arange(len(words) + 1)
    row = steps
    for count, word in enumerate(others, start=1):
        changed = np.empty_like(row)
        changed[0] = count
        np.minimum(row[1:] + 1, row[:-1] + (codes != numbers.get(word, -1)), out=changed[1:])
        # An inserted word costs 1 more than the place before it.
        row = np.minimum.accumulate(changed - steps) + steps
    return int(row[-1])
