"""Intervals agree with Wilson's, Fieller's idea and slow searches; they are never of no width."""

import math

import numpy as np
import pytest

from longred.evaluation.intervals import Averages, Draws, draws_of, interval

Z = 1.959963984540054


def task(*models: list[float]) -> Draws:
    scores = np.array(models)
    return Draws(scores, np.full(scores.shape[1], 1 / scores.shape[1]))


def right(num_right: int, size: int) -> list[float]:
    return [100.0] * num_right + [0.0] * (size - num_right)


@pytest.mark.parametrize(("num_right", "size"), [(1, 6), (19, 20), (5, 20), (98, 100), (250, 500)])
def test_right_answers_of_one_task_give_wilsons_interval(num_right: int, size: int) -> None:
    """Newcombe 1998, method 4: score interval with continuity correction."""
    share, n = num_right / size, size
    inner = 4 * share * (n * (1 - share) + 1)
    low = 2 * n * share + Z**2 - 1 - Z * math.sqrt(Z**2 - 2 - 1 / n + inner)
    inner = 4 * share * (n * (1 - share) - 1)
    high = 2 * n * share + Z**2 + 1 + Z * math.sqrt(Z**2 + 2 - 1 / n + inner)
    expected = [100 * low / (2 * (n + Z**2)), 100 * high / (2 * (n + Z**2))]
    found = Averages([task(right(num_right, size))]).mean()
    assert found == pytest.approx(expected)


def slow_end(
    tasks: list[np.ndarray], weights: list[float], factors: tuple[float, float], sign: int
) -> float:
    """Search the end in tiny steps: ever larger parts of the answers become the best ones."""
    shares = [weight / sum(weights) for weight in weights]
    combined = [factors[0] * each[0] + factors[1] * each[1] for each in tasks]
    best = 100 * sum(max(factor * sign, 0) for factor in factors) * sign
    start = sum(share * float(each.mean()) for share, each in zip(shares, combined, strict=True))
    largest = max(abs(factor) for factor in factors) * 100
    step = 0.5 * largest * sum(s**2 / len(e) for s, e in zip(shares, combined, strict=True))
    end = start
    for part in np.linspace(0, 1, 5001):
        mean = variance = 0.0
        for share, each in zip(shares, combined, strict=True):
            # The answers as they are, and the best one, with their probabilities.
            values = [*each, best]
            odds = [(1 - part) / len(each)] * len(each) + [part]
            center = sum(o * v for o, v in zip(odds, values, strict=True))
            mean += share * center
            spread = sum(o * (v - center) ** 2 for o, v in zip(odds, values, strict=True))
            variance += share**2 * spread / len(each)
        if abs(mean - start) - step > Z * math.sqrt(variance):
            break
        end = mean
    return end


TASKS = [
    np.array([right(9, 12), right(7, 12)]),
    np.array([[100.0, 25.0, 50.0, 75.0, 100.0], [75.0, 25.0, 0.0, 75.0, 50.0]]),
]
WEIGHTS = [0.7, 0.3]


def averages() -> Averages:
    return Averages([task(*each.tolist()) for each in TASKS], WEIGHTS)


@pytest.mark.parametrize("model", [0, 1])
def test_the_interval_of_an_average_agrees_with_a_slow_search(model: int) -> None:
    factors = (1.0, 0.0) if model == 0 else (0.0, 1.0)
    expected = [slow_end(TASKS, WEIGHTS, factors, sign) for sign in (-1, 1)]
    assert averages().mean(model) == pytest.approx(expected, abs=0.05)


def test_the_interval_of_a_difference_agrees_with_a_slow_search() -> None:
    expected = [slow_end(TASKS, WEIGHTS, (1.0, -1.0), sign) for sign in (-1, 1)]
    assert averages().difference() == pytest.approx(expected, abs=0.05)


def test_at_the_ends_of_a_ratio_no_difference_is_left() -> None:
    low, high = (float(end) / 100 for end in averages().ratio())
    assert slow_end(TASKS, WEIGHTS, (1.0, -low), -1) == pytest.approx(0, abs=0.05)
    assert slow_end(TASKS, WEIGHTS, (1.0, -high), 1) == pytest.approx(0, abs=0.05)
    ours, theirs = (
        sum(w * each[model].mean() for w, each in zip(WEIGHTS, TASKS, strict=True))
        for model in (0, 1)
    )
    assert low < ours / theirs < high


def test_the_ratio_of_exchanged_models_is_the_inverse() -> None:
    low, high = averages().ratio()
    exchanged = Averages([task(*each[::-1].tolist()) for each in TASKS], WEIGHTS).ratio()
    assert exchanged == pytest.approx([1e4 / high, 1e4 / low])


@pytest.mark.parametrize("size", [1, 2, 5, 20, 100])
@pytest.mark.parametrize("score", [0.0, 25.0, 100.0])
def test_no_interval_has_no_width_and_none_leaves_what_is_possible(size: int, score: float) -> None:
    found = Averages([task([score] * size, [score] * size)] * 3)
    for low, high, least, most in (
        (*found.mean(), 0, 100),
        (*found.difference(), -100, 100),
    ):
        assert least <= low < high <= most
        assert high - low > 50 / (size * 3)
        assert low - 1e-9 <= (score if least == 0 else 0) <= high + 1e-9
    if score:
        low, high = found.ratio()
        assert 0 <= low < 100 < high < np.inf
    else:
        assert interval(found.ratio()) is None


def test_a_ratio_to_a_model_that_may_score_nothing_has_no_interval() -> None:
    assert interval(Averages([task(right(3, 4), [0.5, 0, 0, 0])]).ratio()) is None
    assert interval(Averages([task(right(3, 4), right(1, 4))]).ratio()) is not None


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(3)
    hard = rng.random(200)
    scores = 100.0 * np.stack([hard < 0.6, hard < 0.7])
    paired = Averages([Draws(scores, np.full(200, 1 / 200))]).difference()
    scores = np.stack([scores[0], rng.permutation(scores[1])])
    unpaired = Averages([Draws(scores, np.full(200, 1 / 200))]).difference()
    assert paired[1] - paired[0] < 0.7 * (unpaired[1] - unpaired[0])


def test_a_task_without_weight_changes_nothing() -> None:
    first, second = task(right(9, 12), right(7, 12)), task([100.0], [0.0])
    alone, both = Averages([first]), Averages([first, second], [1.0, 0.0])
    for found, expected in (
        (both.mean(), alone.mean()),
        (both.difference(), alone.difference()),
        (both.ratio(), alone.ratio()),
    ):
        assert found == pytest.approx(expected)


def test_many_tasks_without_an_error_are_as_one_large_task() -> None:
    whole = Averages([task(right(260, 260))]).mean()
    assert Averages([task(right(20, 20))] * 13).mean() == pytest.approx(whole)


def test_scores_beyond_percent_widen_what_is_possible() -> None:
    low, high = Averages([task([150.0, 120.0, 90.0])]).mean()
    assert low < 120 < high <= 150


def test_answers_of_one_group_are_one_draw_in_proportion_to_their_number() -> None:
    def answers(*scores: float) -> list[dict[str, object]]:
        groups = ["a", None, "a", "b", "b", "b"]
        return [
            {"score": score, "group": group} for score, group in zip(scores, groups, strict=True)
        ]

    found = draws_of([answers(100, 50, 0, 30, 60, 90), answers(0, 0, 0, 0, 0, 100)])
    assert found.scores.tolist() == [[50.0, 50.0, 60.0], [0.0, 0.0, pytest.approx(100 / 3)]]
    assert found.shares.tolist() == pytest.approx([2 / 6, 1 / 6, 3 / 6])
    assert (found.scores @ found.shares).tolist() == pytest.approx([55.0, 100 / 6])


def asking(questions: list[str | None], *models: list[float]) -> Draws:
    return draws_of(
        [
            [{"score": score, "group": q} for score, q in zip(scores, questions, strict=True)]
            for scores in models
        ]
    )


def test_tasks_that_ask_the_same_questions_are_as_one_task_with_their_mean() -> None:
    rng = np.random.default_rng(5)
    scores = 100.0 * (rng.random((3, 2, 40)) < 0.8)
    names = [f"question {number}" for number in range(40)]
    orders = [rng.permutation(40) for _ in range(3)]
    tasks = [
        asking([names[n] for n in order], *each[:, order].tolist())
        for order, each in zip(orders, scores, strict=True)
    ]
    weights = [0.5, 0.3, 0.2]
    found = Averages(tasks, weights)
    alone = Averages([task(*np.einsum("k,kmn->mn", weights, scores).tolist())])
    for ends, expected in (
        (found.mean(0), alone.mean(0)),
        (found.mean(1), alone.mean(1)),
        (found.difference(), alone.difference()),
        (found.ratio(), alone.ratio()),
    ):
        assert ends == pytest.approx(expected)


def test_tasks_with_some_common_questions_lie_between() -> None:
    scores = [right(15, 20), right(12, 20)]
    widths = []
    for num_common in (0, 10, 20):
        second = [f"q{number if number < num_common else number + 20}" for number in range(20)]
        found = Averages([asking([f"q{n}" for n in range(20)], *scores), asking(second, *scores)])
        low, high = found.mean()
        widths.append(float(high - low))
    apart = Averages([task(*scores), task(*scores)]).mean()
    assert widths[0] == pytest.approx(float(apart[1] - apart[0]))
    assert widths[0] < widths[1] < widths[2]


def test_several_evaluations_at_once_give_the_intervals_of_each() -> None:
    rng = np.random.default_rng(0)
    scores = 100.0 * (rng.random((2, 5, 30)) < 0.8)
    shares = np.full(30, 1 / 30)
    together = Averages([Draws(scores, shares)])
    for number in range(5):
        alone = Averages([Draws(scores[:, number], shares)])
        for found, expected in (
            (together.mean(1), alone.mean(1)),
            (together.difference(), alone.difference()),
            (together.ratio(), alone.ratio()),
        ):
            assert [end[number] for end in found] == pytest.approx(expected)
