"""States what one run shows about the method's claims; only an interval gives a verdict.

Source of the claims: arXiv 2502.07365, sections 3 and 5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longred.evaluation.intervals import Interval
from longred.report.measures import Difference
from longred.report.names import ORIGINAL, RESCALED
from longred.report.restoration import MIN_POINTS, Correlation, Point, by_method, correlation_words
from longred.report.scores import Comparison

SUPPORTED, CONTRADICTED = "supported", "contradicted"
OPEN, NOT_TESTABLE = "not decided", "not testable"
MEASURED, HIGHER, LOWER, EQUAL = "measured", "higher", "lower", "equal"
"""Outcomes of numbers without an interval."""
MARGIN = 1.0
"""Points below a baseline that still count as no worse."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim, its outcome in this run, and the numbers behind it."""

    claim: str
    verdict: str
    evidence: str


def findings(
    comparison: Comparison, drift: Mapping[str, Any], *, method: str, baselines: Sequence[str]
) -> list[Finding]:
    """Return the findings about the final models.

    Args:
        comparison: scores of all models.
        drift: profiled drift of the rescaled model from the original.
        method: the trained method in question.
        baselines: methods that it is compared with.
    """
    found = [_drift_finding(comparison, drift)]
    for baseline in baselines:
        if baseline in comparison.models:
            found.append(_similarity_finding(comparison, method, baseline))
            found.extend(_score_findings(comparison, method, baseline))
    return found


def _measured(comparison: Comparison, key: str, *names: str) -> list[float | None]:
    """Return one measure of several models; None for a model that lacks it."""
    return [comparison.models.get(name, {}).get(key) for name in names]


def _drift_finding(comparison: Comparison, drift: Mapping[str, Any]) -> Finding:
    claim = "Distance of attention and hidden states from the original's after rescaling RoPE alone"
    scores = [float(score) for score in drift.get("attention_kl", [])]
    (similarity,) = _measured(comparison, "similarity", RESCALED)
    if similarity is None or not scores:
        return Finding(claim, NOT_TESTABLE, "the rescaled model was not evaluated")
    evidence = (
        f"last-layer similarity {similarity:.4f}; attention KL {sum(scores) / len(scores):.4f} "
        f"nats (mean over layers), maximum {max(scores):.4f} in decoder layer "
        f"{scores.index(max(scores))}"
    )
    if start := int(drift.get("student_start", 0)):
        evidence += f", read from position {start:,} on, beyond the original window"
    return Finding(claim, MEASURED, evidence)


def _similarity_finding(comparison: Comparison, method: str, baseline: str) -> Finding:
    claim = f"Hidden-state similarity of {method} to the original, compared with {baseline}"
    names = (method, baseline, RESCALED)
    ours, theirs, rescaled = _measured(comparison, "similarity", *names)
    if ours is None or theirs is None:
        return Finding(claim, NOT_TESTABLE, "similarity was not measured for both")
    evidence = f"last-layer similarity {ours:.4f} against {theirs:.4f}, without an interval"
    if rescaled is not None:
        evidence += f"; rescaled without training {rescaled:.4f}"
    kl = _measured(comparison, "attention_kl", *names)
    if None not in kl:
        evidence += f"; attention KL {kl[0]:.4f} against {kl[1]:.4f}, rescaled {kl[2]:.4f} nats"
    verdict = EQUAL if ours == theirs else HIGHER if ours > theirs else LOWER
    return Finding(claim, verdict, evidence)


def _score_findings(comparison: Comparison, method: str, baseline: str) -> list[Finding]:
    """Judge that the method is better on short text and no worse at the longest RULER length."""
    by_measure = {
        entry.measure: entry for entry in comparison.differences if entry.baseline == baseline
    }
    claim = f"{method} keeps more short-text ability than {baseline}"
    short = by_measure.get("short average")
    found = [_judge(claim, short, comparison, comparison.short_tasks)]
    if comparison.lengths:
        length = max(comparison.lengths)
        where = f"{length:,} tokens, within {MARGIN:g} point"
        claim = f"{method} is no worse than {baseline} at {where}"
        long = by_measure.get(f"RULER at {length:,} tokens")
        found.append(_judge(claim, long, comparison, comparison.ruler_tasks[length], MARGIN))
    return found


def _judge(
    claim: str,
    entry: Difference | None,
    comparison: Comparison,
    tasks: Sequence[str],
    margin: float = 0.0,
) -> Finding:
    """Judge that a difference is positive or, with a margin, above minus that margin."""
    if entry is None:
        reason = "scores of some task are missing"
        if ORIGINAL not in comparison.models:
            reason = "the original was not evaluated"
        if not tasks and comparison.dropped:
            reason = "every task was dropped: the original scores too close to chance"
        return Finding(claim, NOT_TESTABLE, reason)
    text = f"{entry.measure}: {entry.points:+.1f} points"
    if entry.interval is None:
        reason = f"{text}; per-sample scores for an interval are missing"
        return Finding(claim, NOT_TESTABLE, reason)
    low, high = entry.interval
    evidence = f"{text}, 95 % interval {low:+.1f} to {high:+.1f}"
    return Finding(claim, _verdict(entry.interval, -margin), evidence)


def _verdict(interval: Interval, bound: float = 0.0) -> str:
    """Return on which side of the bound the interval lies."""
    if interval[0] > bound:
        return SUPPORTED
    return CONTRADICTED if interval[1] < bound else OPEN


def restoration_findings(points: Sequence[Point], found: Correlation | None) -> list[Finding]:
    """Return the findings about training steps; none if no student was saved."""
    if not points:
        return []
    claim = "Short-text retention rises with hidden-state similarity to the original"
    if found is None:
        reason = f"fewer than {MIN_POINTS} students have both values, or the values do not vary"
        claims = [Finding(claim, NOT_TESTABLE, reason)]
    else:
        verdict = _verdict(found.spearman_interval)
        claims = [Finding(claim, verdict, correlation_words(found))]
    for method, students in by_method(points).items():
        scored = [(p.short_average, p.step) for p in students if p.short_average is not None]
        if len(scored) < 3:
            continue
        best, step = max(scored)
        (first, at_first), (last, at_last) = scored[0], scored[-1]
        evidence = (
            f"{first:.1f} at step {at_first}, {best:.1f} at step {step}, the highest, and "
            f"{last:.1f} at step {at_last}, the last"
        )
        claims.append(Finding(f"Short average over the steps of {method}", MEASURED, evidence))
    return claims
