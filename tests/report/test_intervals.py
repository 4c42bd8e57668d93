"""Intervals agree with a slow bootstrap, and are None if they are undefined."""

import numpy as np
import pytest

from longred.report.samples import difference, paired_interval, ratio


def tasks_of(sizes: tuple[int, ...], low: float, high: float) -> list[np.ndarray]:
    """Return tasks in which the same samples are hard for both models."""
    rng = np.random.default_rng(7)
    tasks = []
    for size in sizes:
        hard = rng.random(size)
        tasks.append(100.0 * np.stack([hard < low, hard < high]))
    return tasks


def slow_interval(
    tasks: list[np.ndarray], weights: list[float], kind: str, num_resamples: int
) -> tuple[float, float]:
    """Resample by loops: within each task, one index for both models."""
    rng = np.random.default_rng(1)
    values = []
    for _ in range(num_resamples):
        first, second = [], []
        for task in tasks:
            chosen = rng.integers(task.shape[1], size=task.shape[1])
            first.append(np.mean([task[0, index] for index in chosen]))
            second.append(np.mean([task[1, index] for index in chosen]))
        left = sum(w * score for w, score in zip(weights, first, strict=True)) / sum(weights)
        right = sum(w * score for w, score in zip(weights, second, strict=True)) / sum(weights)
        values.append(100 * left / right if kind == "ratio" else left - right)
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@pytest.mark.parametrize("kind", ["ratio", "difference"])
def test_interval_agrees_with_a_slow_bootstrap_over_tasks_of_different_sizes(kind: str) -> None:
    tasks = tasks_of((40, 25), 0.5, 0.8)
    statistic = ratio if kind == "ratio" else difference
    found = paired_interval(tasks, statistic, seed=0)
    assert found == pytest.approx(slow_interval(tasks, [1.0, 1.0], kind, 2000), abs=1.6)


def test_weights_agree_with_a_slow_bootstrap() -> None:
    tasks = [*tasks_of((40, 25), 0.5, 0.8), *tasks_of((60,), 0.7, 0.75)]
    weights = [0.25, 0.25, 0.5]
    found = paired_interval(tasks, ratio, weights=weights, seed=0)
    assert found == pytest.approx(slow_interval(tasks, weights, "ratio", 2000), abs=1.6)
    same = paired_interval(tasks, ratio, weights=[1.0, 1.0, 2.0], seed=0)
    assert same == pytest.approx(found)
    equal = paired_interval(tasks, ratio, seed=0)
    assert equal != pytest.approx(found, abs=1.6)


def test_a_task_that_counts_for_nothing_changes_nothing() -> None:
    tasks = tasks_of((40, 40), 0.5, 0.8)
    constant = [np.array([[0.0, 0.0], [100.0, 100.0]]), *tasks[:1]]
    found = paired_interval(constant, difference, weights=[1.0, 0.0], seed=0)
    assert found == pytest.approx((-100.0, -100.0))


def test_pairing_narrows_the_interval() -> None:
    tasks = tasks_of((200,), 0.6, 0.7)
    rng = np.random.default_rng(3)
    shuffled = [np.stack([task[0], rng.permutation(task[1])]) for task in tasks]
    paired = paired_interval(tasks, difference, seed=0)
    unpaired = paired_interval(shuffled, difference, seed=0)
    assert paired is not None
    assert unpaired is not None
    assert paired[1] - paired[0] < 0.7 * (unpaired[1] - unpaired[0])


def test_the_same_seed_gives_the_same_interval() -> None:
    tasks = tasks_of((50,), 0.5, 0.7)
    assert paired_interval(tasks, ratio, seed=4) == paired_interval(tasks, ratio, seed=4)
    assert paired_interval(tasks, ratio, seed=4) != paired_interval(tasks, ratio, seed=5)


def test_equal_answers_leave_no_doubt() -> None:
    task = np.tile(np.array([0.0, 100.0, 100.0]), (2, 1))
    task[:, 0] = 100.0
    assert paired_interval([task], ratio, seed=0) == (100.0, 100.0)


@pytest.mark.parametrize(
    "tasks",
    [
        [],
        [np.full((2, 1), 100.0)],
        [np.zeros((2, 30))],
        [np.array([[100.0, 0.0, 0.0], [100.0, 0.0, 0.0]])],
    ],
    ids=["no task", "one sample", "the original scores nothing", "a resample may score nothing"],
)
def test_there_is_no_interval_where_nothing_can_be_told(tasks: list[np.ndarray]) -> None:
    assert paired_interval(tasks, ratio, seed=0) is None
