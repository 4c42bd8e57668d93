"""Exact match and F1 of answers in the style of SQuAD (arXiv 1606.05250, 1806.03822).

The definitions are those of SQuAD's own evaluation script, which CoQA and lm-eval use too.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return a text in lower case, without punctuation, articles and repeated spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def compute_exact(wanted: str, got: str) -> int:
    """Return 1 if two answers are equal after normalisation, 0 if not."""
    return int(normalize_answer(wanted) == normalize_answer(got))


def compute_f1(wanted: str, got: str) -> float:
    """Return the F1 of the words that two answers share; two empty answers agree."""
    wanted_words, got_words = normalize_answer(wanted).split(), normalize_answer(got).split()
    if not wanted_words or not got_words:
        return float(wanted_words == got_words)
    shared = (Counter(wanted_words) & Counter(got_words)).total()
    # The harmonic mean of precision and recall, in the order of operations that rounds the same.
    if not shared:
        return 0.0
    precision, recall = shared / len(got_words), shared / len(wanted_words)
    return 2 * precision * recall / (precision + recall)


class SquadV2:
    """The metric `squad_v2` of the `evaluate` package."""

    def compute(
        self, *, predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """Return the scores of SQuAD 2.0, in percent.

        Args:
            predictions: one per question, with `id`, `prediction_text` and
                `no_answer_probability`.
            references: one per question, with `id` and `answers`, whose `text` lists the right
                answers; none of them for a question that the passage does not answer.

        Returns:
            `exact`, `f1` and `total`; the same of questions with (`HasAns_`) and without
            (`NoAns_`) an answer, if there are some; and `best_exact` and `best_f1`, the scores if
            the model did not answer where the probability of no answer exceeds the best threshold
            (`best_exact_thresh`, `best_f1_thresh`).
        """
        got = {str(each["id"]): each for each in predictions}
        wanted = {str(each["id"]): _answers(each) for each in references}
        scores = {
            name: {
                key: float(max(metric(answer, got[key]["prediction_text"]) for answer in answers))
                for key, answers in ((key, found or [""]) for key, found in wanted.items())
            }
            for name, metric in (("exact", compute_exact), ("f1", compute_f1))
        }
        kinds = {
            "": list(wanted),
            "HasAns_": [key for key, answers in wanted.items() if answers],
            "NoAns_": [key for key, answers in wanted.items() if not answers],
        }
        result: dict[str, float] = {}
        for kind, keys in kinds.items():
            if not keys:
                continue
            for name, values in scores.items():
                result[f"{kind}{name}"] = 100.0 * sum(values[key] for key in keys) / len(keys)
            result[f"{kind}total"] = len(keys)
        for name, values in scores.items():
            best, threshold = _best_threshold(values, got, wanted)
            result[f"best_{name}"] = 100.0 * best / len(wanted)
            result[f"best_{name}_thresh"] = threshold
        return result


def _answers(reference: Mapping[str, Any]) -> list[str]:
    """Return the right answers of a question, without those that normalise to nothing."""
    return [text for text in reference["answers"]["text"] if normalize_answer(text)]


def _best_threshold(
    values: Mapping[str, float],
    got: Mapping[str, Mapping[str, Any]],
    wanted: Mapping[str, Sequence[str]],
) -> tuple[float, float]:
    """Return the largest sum of scores over all thresholds, and the lowest such threshold.

    A question whose probability of no answer exceeds the threshold counts as unanswered.
    """
    current = best = float(sum(not answers for answers in wanted.values()))
    threshold = 0.0
    for key in sorted(got, key=lambda key: float(got[key]["no_answer_probability"])):
        if wanted[key]:
            current += values[key]
        elif got[key]["prediction_text"]:
            current -= 1.0
        if current > best:
            best, threshold = current, float(got[key]["no_answer_probability"])
    return best, threshold
