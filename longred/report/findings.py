"""Says in words what one run tells of the method's claims; only an interval gives a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longred.report.scores import ORIGINAL, Comparison, Difference

RESCALED = "rescaled"
SUPPORTED, CONTRADICTED, OPEN, NOT_TESTABLE = (
    "supported",
    "contradicted",
    "not decided",
    "not testable",
)
MEASURED, HIGHER, LOWER, EQUAL = "measured", "higher", "lower", "equal"
"""What is said of a number without an interval."""
MARGIN = 1.0
"""Points below a baseline that still count as no worse."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim, how it came out in this run, and the numbers that say so."""

    claim: str
    verdict: str
    evidence: str


def findings(
    comparison: Comparison, drift: Mapping[str, Any], *, method: str, baselines: Sequence[str]
) -> list[Finding]:
    """Return each claim that one run can speak to (source: arXiv 2502.07365, sections 3 and 5).

    Args:
        comparison: the scores of all models.
        drift: what profiling measured between the original and the rescaled model.
        method: the trained method in question.
        baselines: the methods it is compared with.
    """
    found = [_drift_finding(comparison, drift)]
    for baseline in baselines:
        if baseline in comparison.models:
            found.append(_restoration_finding(comparison, method, baseline))
            found.extend(_score_findings(comparison, method, baseline))
    return found


def _similarity(comparison: Comparison, name: str) -> float | None:
    value = comparison.models.get(name, {}).get("similarity")
    return None if value is None else float(value)


def _drift_finding(comparison: Comparison, drift: Mapping[str, Any]) -> Finding:
    claim = "Distance of attention and hidden states from the original's after rescaling RoPE alone"
    scores = [float(score) for score in drift.get("attention_kl", [])]
    similarity = _similarity(comparison, RESCALED)
    if similarity is None or not scores:
        return Finding(claim, NOT_TESTABLE, "the rescaled model was not evaluated")
    evidence = (
        f"last-layer similarity {similarity:.4f}; attention KL {sum(scores) / len(scores):.4f} "
        f"nats on average "
        f"over layers, {max(scores):.4f} in decoder layer {scores.index(max(scores))}"
    )
    return Finding(claim, MEASURED, evidence)


def _restoration_finding(comparison: Comparison, method: str, baseline: str) -> Finding:
    claim = f"Hidden-state similarity of {method} to the original, compared with {baseline}"
    ours, theirs = _similarity(comparison, method), _similarity(comparison, baseline)
    if ours is None or theirs is None:
        return Finding(claim, NOT_TESTABLE, "similarity was not measured for both")
    evidence = f"last-layer similarity {ours:.4f} against {theirs:.4f}, without an interval"
    rescaled = _similarity(comparison, RESCALED)
    if rescaled is not None:
        evidence += f"; rescaled without training {rescaled:.4f}"
    kl = [comparison.models.get(n, {}).get("attention_kl") for n in (method, baseline, RESCALED)]
    if all(value is not None for value in kl):
        evidence += f"; attention KL {kl[0]:.4f} against {kl[1]:.4f}, rescaled {kl[2]:.4f} nats"
    verdict = EQUAL if ours == theirs else HIGHER if ours > theirs else LOWER
    return Finding(claim, verdict, evidence)


def _score_findings(comparison: Comparison, method: str, baseline: str) -> list[Finding]:
    found = []
    by_measure = {
        entry.measure: entry for entry in comparison.differences if entry.baseline == baseline
    }
    short = by_measure.pop("short average", None)
    claim = f"{method} keeps more short-text ability than {baseline}"
    if short is None:
        found.append(Finding(claim, NOT_TESTABLE, _why_not(comparison, None)))
    else:
        found.append(Finding(claim, _verdict(short), _evidence(short)))
    if comparison.lengths:
        length = max(comparison.lengths)
        claim = (
            f"{method} is no worse than {baseline} at {length:,} tokens, within {MARGIN:g} point"
        )
        long = by_measure.get(f"RULER at {length:,} tokens")
        if long is None:
            found.append(Finding(claim, NOT_TESTABLE, _why_not(comparison, length)))
        else:
            found.append(Finding(claim, _verdict(long, margin=MARGIN), _evidence(long)))
    return found


def _verdict(entry: Difference, margin: float = 0.0) -> str:
    """Judge that the method is better, or with a margin, that it is worse by less than that."""
    if entry.interval is None:
        return NOT_TESTABLE
    low, high = entry.interval
    if low > -margin:
        return SUPPORTED
    return CONTRADICTED if high < -margin else OPEN


def _evidence(entry: Difference) -> str:
    text = f"{entry.measure}: {entry.points:+.1f} points"
    if entry.interval is None:
        return f"{text}; per-sample scores for an interval are missing"
    return f"{text}, 95 % interval {entry.interval[0]:+.1f} to {entry.interval[1]:+.1f}"


def _why_not(comparison: Comparison, length: int | None) -> str:
    tasks = comparison.short_tasks if length is None else comparison.ruler_tasks.get(length, [])
    if not tasks and comparison.dropped:
        return "every task was dropped: the original scores too close to chance"
    if ORIGINAL not in comparison.models:
        return "the original was not evaluated"
    return "scores of some task are missing"
