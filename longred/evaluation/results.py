"""Result: one score per sample, aggregated per task."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from longred.evaluation.intervals import Averages, Interval, draws_of, interval
from longred.evaluation.metrics.published import METRICS as PUBLISHED_METRICS
from longred.evaluation.metrics.published import Score
from longred.evaluation.metrics.ruler import METRICS
from longred.evaluation.metrics.ruler_v2 import chosen_letter
from longred.evaluation.tasks import Row

_NUMBER = re.compile(r"\d+")


class Result(NamedTuple):
    """The result of one task for one model.

    Attributes:
        scores: the aggregate, see `summary`; for a measurement without samples, its values.
        answers: one row per sample: what was expected, what the model answered, and its score.
    """

    scores: Row
    answers: Sequence[Row] = ()


def score(metric: str, sample: Mapping[str, Any], results: Sequence[Any]) -> Score:
    """Score one sample.

    A choice is always parsed; a generated answer is if it holds a number (`exact_match`), a letter
    (`letter_match`), any text (RULER's other metrics), or what its published benchmark reads.

    Args:
        metric: `choice`, `exact_match`, one of RULER or of a published benchmark.
        sample: the frozen sample.
        results: (log-likelihood, is greedy) of each choice, or the generated text alone.
    """
    if metric == "choice":
        return Score(100.0 * (likeliest(results) == sample["answer"]), True)
    text = results[0]
    if metric == "exact_match":
        number = first_number(text)
        return Score(100.0 * (number == sample["outputs"][0]), number is not None)
    if metric in PUBLISHED_METRICS:
        return PUBLISHED_METRICS[metric](text, sample)
    is_parsed = bool(text.strip())
    if metric == "letter_match":
        is_parsed = chosen_letter(text) is not None
    return Score(METRICS[metric](text, sample["outputs"]), is_parsed)


def first_number(text: str) -> str | None:
    """Return the first run of digits in a text."""
    match = _NUMBER.search(text)
    return match[0] if match else None


def likeliest(results: Sequence[Any]) -> int:
    """Return the index of the choice with the highest log-likelihood."""
    likelihoods = [float(result[0]) for result in results]
    return likelihoods.index(max(likelihoods))


def summary(answers: Sequence[Mapping[str, Any]], chance: float) -> Row:
    """Aggregate the answers to a task.

    Args:
        answers: one per sample, with `score` in percent; generated ones with `ended` and
            `output_tokens`, and `unparsed` if they hold nothing that the metric can read;
            `truncated` if the prompt was truncated, and `group` if the sample is one of several
            that repeat a question.
        chance: score of guessing, in percent.

    Returns:
        `score` (the mean), `interval` (its 95 % interval, [low, high]), `num_samples`, `chance`,
        `truncated` (number of samples); for generated answers also `unparsed` (number of
        samples), `eos_rate` (percent that ended with EOS), `budget_rate` (percent that used the
        whole token budget) and `output_tokens` (mean).
    """
    mean = sum(float(answer["score"]) for answer in answers) / len(answers)
    ends = interval(Averages([draws_of([answers])]).mean())
    result = totals(mean, ends, len(answers), chance, num_truncated(answers))
    generated = [answer for answer in answers if "ended" in answer]
    if generated:
        share = 100.0 / len(generated)
        result["unparsed"] = sum(bool(answer.get("unparsed")) for answer in generated)
        result["eos_rate"] = share * sum(a["ended"] == "eos" for a in generated)
        result["budget_rate"] = share * sum(a["ended"] == "budget" for a in generated)
        result["output_tokens"] = sum(a["output_tokens"] for a in generated) / len(generated)
    return result


def combined(parts: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> Row:
    """Aggregate the members of a group; every sample has equal weight.

    Args:
        parts: the `summary` of each member.
        answers: those of all members; empty if the metric has no value per sample.
    """
    if answers:
        return summary(answers, float(parts[0]["chance"]))
    if len(parts) == 1:
        return dict(parts[0])
    count = sum(int(part["num_samples"]) for part in parts)
    mean = sum(part["score"] * part["num_samples"] for part in parts) / count
    truncated = sum(int(part["truncated"]) for part in parts)
    return totals(mean, None, count, parts[0]["chance"], truncated)


def totals(
    score: float, ends: Interval | None, num_samples: int, chance: float, truncated: int
) -> Row:
    """Return the values that every aggregate has; `ends` are None if only the mean is known."""
    return {
        "score": score,
        "interval": None if ends is None else list(ends),
        "num_samples": num_samples,
        "chance": chance,
        "truncated": truncated,
    }


def num_truncated(answers: Sequence[Mapping[str, Any]]) -> int:
    """Count the answers whose prompt was truncated."""
    return sum(bool(answer.get("truncated")) for answer in answers)
