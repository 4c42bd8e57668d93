"""Bootstrap intervals of comparisons between models that answered the same samples."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95


def ratio(averages: Floats) -> Floats:
    """Return model 0 over model 1 in percent, NaN where that is 0; `averages` is [2, ...]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(averages[1] > 0, 100.0 * averages[0] / averages[1], np.nan)


def difference(averages: Floats) -> Floats:
    """Return model 0 minus model 1 in points; `averages` is [2, ...]."""
    return np.asarray(averages[0] - averages[1], dtype=np.float64)


def paired_interval(
    tasks: Sequence[Floats],
    statistic: Callable[[Floats], Floats],
    *,
    weights: Sequence[float] | None = None,
    seed: int,
) -> Interval | None:
    """Return the percentile bootstrap interval of a statistic of two models' averages over tasks.

    Samples are drawn again within each task and both models keep the answers to the same samples,
    so what the models share (an easy or a hard sample) cancels out of the comparison.

    Args:
        tasks: one array [2, num_samples] of per-sample scores a task.
        statistic: maps the averages [2, ...] to values [...].
        weights: what each task counts in the average, relative to the others; None for equal parts.
        seed: seed of the resampling.

    Returns:
        The ends of the 95 % interval, or None where it cannot be told: a task has fewer than two
        samples, or a resample leaves the statistic undefined.
    """
    if not tasks or any(task.shape[1] < 2 for task in tasks):
        return None
    means = [task.mean(axis=-1) for task in tasks]
    if not np.isfinite(statistic(np.average(means, axis=0, weights=weights))):
        return None
    from scipy.stats import DegenerateDataWarning, bootstrap

    def resampled(*indices: Any, axis: int = -1) -> Floats:
        averages = [
            task[:, np.asarray(index).astype(np.intp)].mean(axis=-1)
            for task, index in zip(tasks, indices, strict=True)
        ]
        return statistic(np.average(averages, axis=0, weights=weights))

    # The samples are index arrays, drawn independently for each task: that pairs the models within
    # a task and allows tasks of different sizes, which paired=True does not.
    with warnings.catch_warnings():
        # Undefined resamples are looked for below, and said as None.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        result = bootstrap(
            [np.arange(task.shape[1]) for task in tasks],
            resampled,
            n_resamples=NUM_RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(seed),
        )
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    return (low, high) if np.isfinite(result.bootstrap_distribution).all() else None
