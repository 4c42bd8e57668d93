"""What a training restores and forgets over its steps, and whether similarity goes with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from longred.method.kept import kept_name
from longred.report.findings import (
    CONTRADICTED,
    MEASURED,
    NOT_TESTABLE,
    OPEN,
    RESCALED,
    SUPPORTED,
    Finding,
)
from longred.report.intervals import CONFIDENCE, NUM_RESAMPLES, Floats, Interval
from longred.report.scores import ORIGINAL, Comparison, collect

Kept = Mapping[str, Mapping[int, Path]]
"""Method → step → folder of the scores of the student that was kept there."""
MIN_POINTS = 4
"""Fewer say nothing about a correlation."""
MAX_UNDEFINED = 0.1
"""Part of the resamples that may be undefined: of few points, all may be the same one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A student on its way; None where something cannot be told.

    Attributes:
        method: how it is trained.
        step: optimizer steps that are done; 0 is the rescaled model.
        short: short average in percent.
        ruler: RULER average at its longest length, in percent.
        retention: of the short average, in percent of the original's.
        interval: of the retention.
        similarity: mean cosine of the last hidden state to the original's.
        attention_kl: mean over layers of the attention's KL from the original's, nats per query.
    """

    method: str
    step: int
    short: float | None
    ruler: float | None
    retention: float | None
    interval: Interval | None
    similarity: float | None
    attention_kl: float | None


@dataclass(frozen=True, slots=True)
class Correlation:
    """Of retention with similarity over all points, with 95 % intervals over the points."""

    num_points: int
    pearson: float
    pearson_interval: Interval
    spearman: float
    spearman_interval: Interval


def follow(
    comparison: Comparison,
    folders: Mapping[str, Path],
    kept: Kept,
    last_steps: Mapping[str, int],
    *,
    original_window: int,
    seed: int,
) -> list[Point]:
    """Return every method's points, by step; a method of which nothing was kept has none.

    Args:
        comparison: of the finished models; what it drops is dropped here too.
        folders: model → folder of its scores.
        kept: the students on the way.
        last_steps: method → the step of its result.
        original_window: the original's window, in tokens.
        seed: seed of the bootstrap.

    Raises:
        MismatchError: a folder lacks its scores, or answered different samples.
    """
    models = {
        kept_name(method, step): folder
        for method, steps in kept.items()
        for step, folder in steps.items()
    }
    if ORIGINAL in folders:
        models[ORIGINAL] = folders[ORIGINAL]
    found = collect(
        models,
        original_window=original_window,
        min_points_above_chance=0.0,
        dropped=comparison.dropped,
        seed=seed,
    )
    points = []
    for method in kept:
        if RESCALED in comparison.models:
            points.append(_point(comparison, RESCALED, method, 0))
        for step in sorted(kept[method]):
            points.append(_point(found, kept_name(method, step), method, step))
        if method in comparison.models and method in last_steps:
            points.append(_point(comparison, method, method, last_steps[method]))
    return points


def _point(comparison: Comparison, name: str, method: str, step: int) -> Point:
    model = comparison.models[name]
    ends = model["retention_interval"]["short"]
    lengths = comparison.lengths
    return Point(
        method=method,
        step=step,
        short=model["short"]["average"],
        ruler=model["ruler"][str(max(lengths))]["average"] if lengths else None,
        retention=model["retention"]["short"],
        interval=(ends[0], ends[1]) if ends else None,
        similarity=model["similarity"],
        attention_kl=model["attention_kl"],
    )


def by_method(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Return each method's points, by step."""
    methods = dict.fromkeys(point.method for point in points)
    return {m: [point for point in points if point.method == m] for m in methods}


def correlation(points: Sequence[Point], *, seed: int) -> Correlation | None:
    """Return how retention goes with similarity over all points, the rescaled model once.

    The intervals are percentiles of a bootstrap over the points: they cover which students were
    looked at. Students of one training are not independent of each other, so they are too narrow
    for a claim about trainings in general. None where there are too few points or all are alike.
    """
    distinct = {(p.method if p.step else "", p.step): p for p in points}.values()
    pairs = [
        (p.similarity, p.retention)
        for p in distinct
        if p.similarity is not None and p.retention is not None
    ]
    if len(pairs) < MIN_POINTS:
        return None
    x_N, y_N = np.array(pairs, dtype=np.float64).T
    places = np.random.default_rng(seed).integers(len(pairs), size=(NUM_RESAMPLES, len(pairs)))
    pearson = _with_interval(x_N, y_N, places)
    spearman = _with_interval(_ranks(x_N), _ranks(y_N), places, ranked=True)
    if pearson is None or spearman is None:
        return None
    return Correlation(len(pairs), *pearson, *spearman)


def _ranks(values: Floats) -> Floats:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=-1), dtype=np.float64)


def _with_interval(
    x_N: Floats, y_N: Floats, places_RN: npt.NDArray[np.int64], *, ranked: bool = False
) -> tuple[float, Interval] | None:
    x_RN, y_RN = x_N[places_RN], y_N[places_RN]
    if ranked:
        x_RN, y_RN = _ranks(x_RN), _ranks(y_RN)
    value = float(_correlate(x_N[None], y_N[None])[0])
    resampled_R = _correlate(x_RN, y_RN)
    defined_R = resampled_R[np.isfinite(resampled_R)]
    if not np.isfinite(value) or len(defined_R) < (1 - MAX_UNDEFINED) * len(resampled_R):
        return None
    rest = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(defined_R, [rest, 100 - rest])
    return value, (float(low), float(high))


def _correlate(x_RN: Floats, y_RN: Floats) -> Floats:
    """Return Pearson's correlation of every row; NaN where a side does not vary."""
    x_RN = x_RN - x_RN.mean(axis=1, keepdims=True)
    y_RN = y_RN - y_RN.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread_R = np.sqrt((x_RN**2).sum(axis=1) * (y_RN**2).sum(axis=1))
        return np.asarray((x_RN * y_RN).sum(axis=1) / spread_R, dtype=np.float64)


def restoration_findings(points: Sequence[Point], found: Correlation | None) -> list[Finding]:
    """Say what the steps of this run tell of the method's claims; nothing where none was kept."""
    if not points:
        return []
    claim = "Short-text retention rises with hidden-state similarity to the original"
    if found is None:
        reason = f"fewer than {MIN_POINTS} students have both, or they are all alike"
        claims = [Finding(claim, NOT_TESTABLE, reason)]
    else:
        low, high = found.spearman_interval
        verdict = SUPPORTED if low > 0 else CONTRADICTED if high < 0 else OPEN
        claims = [Finding(claim, verdict, correlation_words(found))]
    for method, way in by_method(points).items():
        scored = [(p.short, p.step) for p in way if p.short is not None]
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


def correlation_words(found: Correlation) -> str:
    """Return both correlations with their intervals and what these cover."""

    def words(name: str, value: float, ends: Interval) -> str:
        return f"{name} {value:+.2f} (95 % interval {ends[0]:+.2f} to {ends[1]:+.2f})"

    return (
        f"{words('Spearman', found.spearman, found.spearman_interval)}, "
        f"{words('Pearson', found.pearson, found.pearson_interval)} over {found.num_points} "
        "students; the intervals cover which students were kept, not which were trained"
    )


def restoration_metrics(
    points: Sequence[Point], found: Correlation | None
) -> dict[int, dict[str, float]]:
    """Return journal values by training step; the correlation is at step 0.

    Keys: `<method>/by_step/` with short_average, ruler, retention, similarity and attention_kl;
    `restoration/` with spearman, pearson and the ends of their intervals.
    """
    values: dict[int, dict[str, float]] = {}
    for point in points:
        measured = {
            "short_average": point.short,
            "ruler": point.ruler,
            "retention": point.retention,
            "similarity": point.similarity,
            "attention_kl": point.attention_kl,
        }
        values.setdefault(point.step, {}).update(
            {f"{point.method}/by_step/{k}": v for k, v in measured.items() if v is not None}
        )
    if found is not None:
        for name in ("spearman", "pearson"):
            low, high = getattr(found, f"{name}_interval")
            ends = {"": getattr(found, name), "_low": low, "_high": high}
            values.setdefault(0, {}).update(
                {f"restoration/{name}{end}": value for end, value in ends.items()}
            )
    return values
