"""How retention and similarity develop over training steps, and whether they correlate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longred.evaluation.intervals import CONFIDENCE, Floats, Interval
from longred.method.kept import kept_name
from longred.report.inputs import Inputs
from longred.report.names import ORIGINAL, RESCALED
from longred.report.scores import Comparison, collect

NUM_RESAMPLES = 2000
MIN_POINTS = 4
"""A correlation of fewer points means nothing."""
MAX_UNDEFINED = 0.1
"""Largest share of undefined resamples; with few points, one may draw the same point only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Scores of one student at one step; None if unknown.

    Attributes:
        method: training method.
        step: completed optimizer steps; 0 is the rescaled model.
        short_average: in percent.
        ruler: RULER average at its longest length, in percent.
        retention: retention of the short average, in percent of the original.
        interval: 95 % interval of the retention.
        similarity: mean cosine of the last hidden state to the original's.
        attention_kl: mean over layers of the attention's KL from the original's, nats per query.
    """

    method: str
    step: int
    short_average: float | None
    ruler: float | None
    retention: float | None
    interval: Interval | None
    similarity: float | None
    attention_kl: float | None


@dataclass(frozen=True, slots=True)
class Correlation:
    """Correlation of retention with similarity over all points, with 95 % intervals."""

    num_points: int
    pearson: float
    pearson_interval: Interval
    spearman: float
    spearman_interval: Interval


def follow(comparison: Comparison, inputs: Inputs) -> list[Point]:
    """Return every method's points, by step; none for a method without saved students.

    Args:
        comparison: comparison of the final models; what it drops is dropped here too.
        inputs: inputs of the report.

    Raises:
        MismatchError: a folder lacks its scores, or answered different samples.
    """
    models = inputs.saved_students
    if ORIGINAL in inputs.scores:
        models[ORIGINAL] = inputs.scores[ORIGINAL]
    found = collect(models, original_window=inputs.original_window, dropped=comparison.dropped)
    points = []
    for method, steps in inputs.kept.items():
        if RESCALED in comparison.models:
            points.append(_point(comparison, RESCALED, method, 0))
        for step in sorted(steps):
            points.append(_point(found, kept_name(method, step), method, step))
        if method in comparison.models:
            last_step = int(inputs.trainings[method]["num_steps"])
            points.append(_point(comparison, method, method, last_step))
    return points


def _point(comparison: Comparison, name: str, method: str, step: int) -> Point:
    model, lengths = comparison.models[name], comparison.lengths
    ends = model["retention_interval"]["short"]
    return Point(
        method=method,
        step=step,
        short_average=model["short"]["average"],
        ruler=model["ruler"][str(max(lengths))]["average"] if lengths else None,
        retention=model["retention"]["short"],
        interval=(ends[0], ends[1]) if ends else None,
        similarity=model["similarity"],
        attention_kl=model["attention_kl"],
    )


def by_method(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Group points by method."""
    methods = dict.fromkeys(point.method for point in points)
    return {m: [point for point in points if point.method == m] for m in methods}


def correlation(points: Sequence[Point], *, seed: int) -> Correlation | None:
    """Correlate retention with similarity over all points; the rescaled model counts once.

    The intervals are percentiles of a bootstrap over the points, so they cover the choice of
    students. Students of one training are not independent of each other: the intervals are too
    narrow for a claim about trainings in general. None if there are too few points or one side
    does not vary.
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
    indices = np.random.default_rng(seed).integers(len(pairs), size=(NUM_RESAMPLES, len(pairs)))
    pearson = _with_interval(x_N, y_N, indices)
    spearman = _with_interval(x_N, y_N, indices, ranked=True)
    if pearson is None or spearman is None:
        return None
    return Correlation(len(pairs), *pearson, *spearman)


def _with_interval(
    x_N: Floats, y_N: Floats, indices_RN: npt.NDArray[np.int64], *, ranked: bool = False
) -> tuple[float, Interval] | None:
    """Return the correlation of the values or of their ranks, and its bootstrap interval."""
    value = float(_correlate(x_N[None], y_N[None], ranked=ranked)[0])
    resampled_R = _correlate(x_N[indices_RN], y_N[indices_RN], ranked=ranked)
    defined_R = resampled_R[np.isfinite(resampled_R)]
    if not np.isfinite(value) or len(defined_R) < (1 - MAX_UNDEFINED) * len(resampled_R):
        return None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(defined_R, [tail, 100 - tail])
    return value, (float(low), float(high))


def _correlate(x_RN: Floats, y_RN: Floats, *, ranked: bool) -> Floats:
    """Return Pearson's correlation of every row, of ranks if `ranked`; NaN if a side is constant.

    Vectorised over rows, unlike scipy.stats.spearmanr.
    """
    if ranked:
        from scipy.stats import rankdata

        x_RN, y_RN = rankdata(x_RN, axis=-1), rankdata(y_RN, axis=-1)
    x_RN = x_RN - x_RN.mean(axis=1, keepdims=True)
    y_RN = y_RN - y_RN.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread_R = np.sqrt((x_RN**2).sum(axis=1) * (y_RN**2).sum(axis=1))
        return np.asarray((x_RN * y_RN).sum(axis=1) / spread_R, dtype=np.float64)


def correlation_words(found: Correlation) -> str:
    """Return both correlations with their intervals and what the intervals cover."""

    words = [
        f"{name} {value:+.2f} (95 % interval {low:+.2f} to {high:+.2f})"
        for name, value, (low, high) in (
            ("Spearman", found.spearman, found.spearman_interval),
            ("Pearson", found.pearson, found.pearson_interval),
        )
    ]
    return (
        f"{', '.join(words)} over {found.num_points} students. The intervals cover the choice of "
        "saved students, not the randomness of training"
    )


def restoration_metrics(
    points: Sequence[Point], correlated: Correlation | None
) -> dict[int, dict[str, float]]:
    """Return journal values by training step; the correlation is at step 0.

    Keys: `<method>/by_step/` with short_average, ruler, retention, similarity and attention_kl;
    `restoration/` with spearman, pearson and the ends of their intervals.
    """
    values: dict[int, dict[str, float]] = {}
    for point in points:
        found = values.setdefault(point.step, {})
        for key in ("short_average", "ruler", "retention", "similarity", "attention_kl"):
            value = getattr(point, key)
            if value is not None:
                found[f"{point.method}/by_step/{key}"] = value
    if correlated is not None:
        found = values.setdefault(0, {})
        for name in ("spearman", "pearson"):
            found[f"restoration/{name}"] = getattr(correlated, name)
            low, high = getattr(correlated, f"{name}_interval")
            found |= {f"restoration/{name}_low": low, f"restoration/{name}_high": high}
    return values
