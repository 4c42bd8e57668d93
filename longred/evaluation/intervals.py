"""95 % intervals of scores: of an average, of the difference of two models, of their ratio.

They are Wilson's score interval with continuity correction (Newcombe, Statistics in Medicine 17,
1998, method 4), extended from a share of right answers to weighted averages of bounded scores over
several tasks. Wilson's upper end is the highest share that the answers do not contradict: the
spread is that of the end, not that of the answers, and so never zero. Here, the end is reached by
replacing a part of the answers to every task by the best possible ones; the lower end by the worst.
Questions are drawn, not answers: those that several tasks ask count once (a cluster in statistics).
A ratio belongs to its interval if the interval of "model 0 minus ratio times model 1" holds 0
(Fieller, 1954).

Nothing is resampled. How often the intervals hold the true value, and their width, is simulated by
`tests/benchmarks/intervals.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]
Ends = tuple[Floats, Floats]
"""The lower and the upper ends of intervals."""

CONFIDENCE = 0.95
_STEP = 0.5
"""Continuity correction: part of what one answer can change."""
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
_NUM_HALVINGS = 32
_LOWEST, _HIGHEST = 0.0, 100.0


@dataclass(frozen=True, slots=True)
class Draws:
    """Independent draws of the samples of one task, answered by one model or more.

    Attributes:
        scores: [num_models, ..., num_draws] in percent.
        shares: share of each draw in the score of the task, [num_draws]; they sum to 1.
        questions: what each draw asks; tasks that ask the same are not independent. None for a
            question of its own; empty if that holds for all.
    """

    scores: Floats
    shares: Floats
    questions: Sequence[str | None] = ()


def draws_of(models: Sequence[Sequence[Mapping[str, Any]]]) -> Draws:
    """Return the draws behind the answers of several models to the same samples.

    Answers that share a `group` are one draw with their mean score, in proportion to their number:
    repeats of one question say little more than the question asked once.

    Args:
        models: for each model its answers, with `score` and perhaps `group`, in the same order.
    """
    groups: dict[str | int, int] = {}
    # Without a group, the number of an answer is a key of its own.
    keys = [answer.get("group") or number for number, answer in enumerate(models[0])]
    draw_N = np.array([groups.setdefault(key, len(groups)) for key in keys])
    sizes = np.bincount(draw_N).astype(np.float64)
    scores = [[float(answer["score"]) for answer in answers] for answers in models]
    sums = [np.bincount(draw_N, weights=np.array(each)) for each in scores]
    questions = [key if isinstance(key, str) else None for key in groups]
    return Draws(np.stack(sums) / sizes, sizes / sizes.sum(), questions)


def _numbered(tasks: Sequence[Draws]) -> list[npt.NDArray[np.intp]]:
    """Return a number for what each draw of each task asks, the same for the same question."""
    numbers: dict[str | tuple[int, int], int] = {}
    found = []
    for place, task in enumerate(tasks):
        questions = task.questions or [None] * len(task.shares)
        keys = [asked or (place, number) for number, asked in enumerate(questions)]
        found.append(np.array([numbers.setdefault(key, len(numbers)) for key in keys]))
    return found


class Averages:
    """Weighted averages over tasks of one model or two, and their intervals.

    Shapes: M models, K tasks, Q questions over all tasks, `...` any number of independent
    repetitions of the evaluation.

    Args:
        tasks: at least one; all have the same models.
        weights: relative weight of each task; None for equal weights.
    """

    def __init__(self, tasks: Sequence[Draws], weights: Sequence[float] | None = None) -> None:
        weights_K = np.ones(len(tasks)) if weights is None else np.array(weights, dtype=np.float64)
        self._weights_K = weights_K / weights_K.sum()
        means = [task.scores @ task.shares for task in tasks]
        self._means_MK = np.stack(means, axis=-1)
        numbers = _numbered(tasks)
        num_questions = 1 + max(int(number_N.max()) for number_N in numbers)
        errors_MQ = np.zeros((*self._means_MK.shape[:-1], num_questions))
        shares_KQ = np.zeros((len(tasks), num_questions))
        for place, (task, number_N) in enumerate(zip(tasks, numbers, strict=True)):
            shares_N = task.shares * self._weights_K[place]
            # A task asks each of its questions once.
            errors_MQ[..., number_N] += (task.scores - means[place][..., None]) * shares_N
            shares_KQ[place, number_N] = shares_N
        self._covariance_MM = np.einsum("a...q,b...q->ab...", errors_MQ, errors_MQ)
        self._squares_KK = shares_KQ @ shares_KQ.T
        # A metric of another scale than percent: what was scored is possible.
        self._low = min(_LOWEST, *(float(task.scores.min()) for task in tasks))
        self._high = max(_HIGHEST, *(float(task.scores.max()) for task in tasks))

    def mean(self, model: int = 0) -> Ends:
        """Return both ends [...] of the interval of a model's average, in percent."""
        return self._ends([float(number == model) for number in range(len(self._means_MK))])

    def points(self) -> Floats:
        """Return model 0 minus model 1 [...], in points."""
        ours, theirs = self._means_MK @ self._weights_K
        return np.asarray(ours - theirs, dtype=np.float64)

    def difference(self) -> Ends:
        """Return both ends [...] of model 0 minus model 1, in points."""
        return self._ends([1.0, -1.0])

    def ratio(self) -> Ends:
        """Return both ends [...] of model 0 over model 1, in percent.

        They are NaN where model 1 scores nothing, and where it may: then no ratio is too high.
        """
        ours, theirs = self._means_MK @ self._weights_K
        # A ratio is the tangent of an angle, so the highest one is finite too: a right angle.
        found = np.arctan2(ours, theirs)
        inside = np.stack([found, found])
        outside = np.stack([np.zeros_like(found), np.full_like(found, np.pi / 2)])
        is_unbounded = (theirs <= 0) | self._holds_zero(outside)[1]
        for _ in range(_NUM_HALVINGS):
            middle = (inside + outside) / 2
            is_inside = self._holds_zero(middle)
            inside = np.where(is_inside, middle, inside)
            outside = np.where(is_inside, outside, middle)
        low, high = np.where(is_unbounded, np.nan, 100.0 * np.tan(inside))
        return low, high

    def _holds_zero(self, angles: Floats) -> npt.NDArray[np.bool_]:
        """Return whether "model 0 minus ratio times model 1" may be 0 at angles [2, ...].

        Angles [0] are below the found ratio, so the difference is positive there and its lower end
        counts; angles [1] are above it.
        """
        signs = np.array([-1.0, 1.0]).reshape(2, *[1] * (angles.ndim - 1))
        ends = self._end([np.cos(angles), -np.sin(angles)], signs)
        return np.asarray(ends * signs >= 0, dtype=np.bool_)

    def _ends(self, factors: Sequence[float]) -> Ends:
        return self._end(factors, np.array(-1.0)), self._end(factors, np.array(1.0))

    def _end(self, factors: Sequence[Floats | float], sign: Floats) -> Floats:
        """Return the lower (sign -1) or upper end of the sum over models of factor times average.

        A part p of the answers to each task is replaced by the best possible ones, which lie
        `room` above the mean: the mean rises by p room, and the variance of an answer becomes
        (1 - p) (variance + p room²). The end is where the mean has risen by `step`, the
        continuity correction, and z standard errors.
        """
        factors_M = [np.asarray(factor, dtype=np.float64)[..., None] for factor in factors]
        sign_K = sign[..., None]
        mean_K = room_K = np.zeros(1)
        step = np.zeros(())
        for factor, scores_K in zip(factors_M, self._means_MK, strict=True):
            best = np.where(factor * sign_K > 0, self._high, self._low)
            mean_K = mean_K + factor * scores_K
            room_K = room_K + np.abs(factor * (best - scores_K))
            step = np.maximum(step, np.abs(factor[..., 0]))
        step = _STEP * step * (self._high - self._low) * self._squares_KK.sum()
        room, added = room_K @ self._weights_K, ((room_K @ self._squares_KK) * room_K).sum(-1)
        known = sum(
            left[..., 0] * right[..., 0] * self._covariance_MM[i, j]
            for i, left in enumerate(factors_M)
            for j, right in enumerate(factors_M)
        )
        # (p room - step)² = z² (1 - p) (known + p added), a quadratic equation of p.
        square = room**2 + _Z**2 * added
        linear = _Z**2 * (added - known) + 2 * room * step
        root = np.sqrt(np.maximum(linear**2 + 4 * square * (_Z**2 * known - step**2), 0.0))
        part = np.where(room > step, (linear + root) / np.where(room > step, 2 * square, 1.0), 1.0)
        found: Floats = mean_K @ self._weights_K + sign * np.minimum(part, 1.0) * room
        return found


def interval(ends: Ends) -> Interval | None:
    """Return the ends of a single evaluation; None if they are undefined."""
    low, high = (float(end) for end in ends)
    return (low, high) if np.isfinite([low, high]).all() else None
