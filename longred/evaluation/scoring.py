"""From single answers to the scores that are reported: means, their errors, how answers ended."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def summary(answers: Sequence[Mapping[str, Any]], chance: float) -> dict[str, Any]:
    """Return what a task's answers add up to.

    Args:
        answers: one for each sample, with `score` in percent; generated ones with `ended` and
            `output_tokens`, and `truncated` where the prompt was cut.
        chance: percent that guessing scores.

    Returns:
        `score` (the mean), `stderr` (of the mean: for scores of 0 and 100 the binomial one, the
        square root of p (1 - p) / n), `num_samples`, `chance`; of generated answers also
        `eos_rate` (percent that ended with EOS), `budget_rate` (percent that used up their room)
        and `output_tokens` (mean); `truncated` (a number of samples) where it is known.
    """
    scores = [float(answer["score"]) for answer in answers]
    count = len(scores)
    mean = sum(scores) / count
    variance = sum((score - mean) ** 2 for score in scores) / count
    found: dict[str, Any] = {
        "score": mean,
        "stderr": math.sqrt(variance / count),
        "num_samples": count,
        "chance": chance,
        "truncated": sum(bool(answer.get("truncated")) for answer in answers),
    }
    generated = [answer for answer in answers if "ended" in answer]
    if generated:
        share = 100.0 / len(generated)
        found["eos_rate"] = share * sum(a["ended"] == "eos" for a in generated)
        found["budget_rate"] = share * sum(a["ended"] == "budget" for a in generated)
        found["output_tokens"] = sum(a["output_tokens"] for a in generated) / len(generated)
    return found


def combined(
    results: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the scores of a task whose parts were asked as units of their own.

    Every sample counts the same, as in the harness's groups of tasks that weight by size.

    Args:
        results: one for each part.
        answers: those of all parts; empty where a metric has no value for a single answer.
    """
    if len(results) == 1:
        return dict(results[0])
    if answers:
        return summary(answers, float(results[0]["chance"]))
    count = sum(int(result["num_samples"]) for result in results)
    return {
        "score": sum(r["score"] * r["num_samples"] for r in results) / count,
        "stderr": None,
        "num_samples": count,
        "chance": results[0]["chance"],
        "truncated": sum(int(result["truncated"]) for result in results),
    }
