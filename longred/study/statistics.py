"""Intervals and tests over seeds.

A seed decides the held-out texts, the order of blocks, the skipped positions and the questions, so
an interval covers these. It covers neither another original model nor another corpus.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

from longred.study.measures import value_of
from longred.study.result import Cell, Difference, Estimate

CONFIDENCE = 0.95
CORRECTED = ("short_retention", "ruler", "similarity")
"""Measures whose differences from the baseline are corrected for the number of comparisons."""
ROUNDING = 1e-12
"""Relative size of a difference that is only rounding."""


def estimate(values: Mapping[int, float]) -> Estimate:
    """Return the mean over seeds, with its 95 % interval by Student's t.

    Args:
        values: seed → value; at least one.
    """
    mean, half = _mean_and_half(list(values.values()))
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Estimate(mean=mean, low=low, high=high, values=dict(values))


def difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], *, margin: float = 0.0
) -> Difference | None:
    """Return the mean of paired differences, with its interval and the p of the paired t test.

    Args:
        ours: seed → value.
        theirs: seed → value that is subtracted.
        margin: the test is of difference + margin against 0; mean and interval are of the
            difference alone.

    Returns:
        None if no seed has both values.
    """
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    pairs = [(ours[seed], theirs[seed]) for seed in seeds]
    scale = max(max(abs(a), abs(b)) for a, b in pairs)
    changes = [0.0 if abs(a - b) <= ROUNDING * scale else a - b for a, b in pairs]
    return of_values(changes, margin=margin)


def of_values(changes: Sequence[float], *, margin: float = 0.0) -> Difference:
    """Return the mean of one value a seed, its interval, and p of its test against -margin."""
    mean, half = _mean_and_half(changes)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    p = _p([change + margin for change in changes])
    return Difference(mean=mean, low=low, high=high, p=p, p_adjusted=None, num_pairs=len(changes))


def _mean_and_half(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the half-width of its interval; None for a single value."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy import stats

    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return mean, quantile * stdev(values) / math.sqrt(len(values))


def _p(changes: Sequence[float]) -> float | None:
    """Return the two-sided p of a t test of the mean against 0; None for a single value."""
    if len(changes) < 2:
        return None
    mean, error = fmean(changes), stdev(changes) / math.sqrt(len(changes))
    if error <= ROUNDING * max(map(abs, changes)):
        # All differences are equal: either there is none, or chance does not explain it.
        return 1.0 if mean == 0 else 0.0
    from scipy import stats

    return float(2 * stats.t.sf(abs(mean) / error, len(changes) - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p after Holm's step-down correction for all values that are known.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return adjusted


def values_of(cells: Sequence[Cell], measure: str) -> dict[int, float]:
    """Return seed → value of the student; seeds without a value are left out."""
    found = {cell.seed: value_of(cell, measure) for cell in cells}
    return {seed: value for seed, value in found.items() if value is not None}


def summarise(
    baseline: Sequence[Cell], cells: Sequence[Cell], measures: Sequence[str]
) -> tuple[dict[str, Estimate], dict[str, Difference]]:
    """Return a variant's estimates, and its differences from the baseline, by measure.

    A measure without a value for every seed is left out of the estimates: its mean would be over
    other seeds than the others'.
    """
    estimates, differences = {}, {}
    for measure in measures:
        values = values_of(cells, measure)
        if values and len(values) == len(cells):
            estimates[measure] = estimate(values)
        change = difference(values, values_of(baseline, measure))
        if change is not None:
            differences[measure] = change
    return estimates, differences


def adjust(
    differences: Mapping[str, Mapping[str, Difference]],
) -> dict[str, dict[str, Difference]]:
    """Correct the differences of a panel's variants, on the measures in `CORRECTED`, together.

    Args:
        differences: variant → measure → difference from the baseline.
    """
    family = [
        (variant, measure)
        for variant, entries in differences.items()
        for measure in CORRECTED
        if measure in entries
    ]
    corrected = holm([differences[variant][measure].p for variant, measure in family])
    found = {variant: dict(entries) for variant, entries in differences.items()}
    for (variant, measure), p in zip(family, corrected, strict=True):
        found[variant][measure] = replace(found[variant][measure], p_adjusted=p)
    return found


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; None if fewer than three pairs, or one does not vary."""
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    from scipy import stats

    return float(stats.spearmanr(first, second).statistic)


def front(points: Mapping[str, tuple[float, float, float]]) -> list[str]:
    """Return the points that no other beats: (more is better, more is better, less is better)."""

    def beats(a: tuple[float, float, float], b: tuple[float, float, float]) -> bool:
        return a != b and a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2]

    return [
        name
        for name, point in points.items()
        if not any(beats(other, point) for other in points.values())
    ]
