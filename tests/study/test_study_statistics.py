"""Intervals, p values and the correction, against definitions computed another way."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longred.study.result import Difference
from longred.study.statistics import (
    adjust,
    difference,
    estimate,
    front,
    holm,
    of_values,
    spearman,
    summarise,
)
from tests.study.study_results import row

# Student's t at 97.5 %, from printed tables.
QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262}
VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


def tail(t: float, freedom: int) -> float:
    """Integrate the density of Student's t from t to infinity, by Simpson's rule on 1/x."""
    norm = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))

    def density(x: float) -> float:
        return norm * (1 + x * x / freedom) ** (-(freedom + 1) / 2)

    steps = 20_000
    end = 1 / t
    points = [end * i / steps for i in range(1, steps + 1)]
    values = [0.0 if freedom > 1 else norm * freedom, *(density(1 / u) / u**2 for u in points)]
    weights = [1, *(4 if i % 2 else 2 for i in range(1, steps)), 1]
    return sum(w * v for w, v in zip(weights, values, strict=True)) * end / steps / 3


@pytest.mark.parametrize("count", [2, 3, 4, 5, 10])
def test_an_interval_is_the_mean_and_students_quantile(count: int) -> None:
    rng = random.Random(count)
    values = {seed: rng.gauss(50, 5) for seed in range(count)}
    mean = sum(values.values()) / count
    spread = math.sqrt(sum((v - mean) ** 2 for v in values.values()) / (count - 1))
    half = QUANTILES[count - 1] * spread / math.sqrt(count)
    found = estimate(values)
    assert found.mean == pytest.approx(mean)
    assert found.low == pytest.approx(mean - half, rel=1e-3)
    assert found.high == pytest.approx(mean + half, rel=1e-3)


@pytest.mark.parametrize(("t", "freedom"), [(2.776, 4), (1.0, 4), (4.303, 2), (12.706, 1)])
def test_p_is_the_mass_beyond_t_on_both_sides(t: float, freedom: int) -> None:
    count = freedom + 1
    # Values with mean t and standard error 1.
    raw = [i - freedom / 2 for i in range(count)]
    spread = math.sqrt(sum(r * r for r in raw) / freedom)
    values = [t + r / spread * math.sqrt(count) for r in raw]
    assert of_values(values).p == pytest.approx(2 * tail(t, freedom), rel=2e-3)


def test_differences_are_paired_by_seed() -> None:
    ours, theirs = {0: 5.0, 1: 7.0, 2: 9.0, 9: 100.0}, {2: 6.0, 1: 5.0, 0: 4.0}
    found = difference(ours, theirs)
    assert found is not None
    assert (found.mean, found.num_pairs) == (2.0, 3)
    assert found.low == pytest.approx(2 - QUANTILES[2] / math.sqrt(3), rel=1e-3)
    assert difference({0: 1.0}, {1: 1.0}) is None


def test_one_pair_has_neither_interval_nor_p() -> None:
    found = difference({3: 2.0}, {3: 1.0})
    assert found == Difference(mean=1.0, low=None, high=None, p=None, p_adjusted=None, num_pairs=1)
    assert estimate({3: 2.0}).low is None


def test_equal_differences_are_certain_and_none_is_none() -> None:
    one = of_values([1.0, 1.0, 1.0])
    assert (one.low, one.high, one.p) == (1.0, 1.0, 0.0)
    none = difference({0: 0.1 + 0.2, 1: 5.0}, {0: 0.3, 1: 5.0})
    assert none is not None
    assert (none.mean, none.p) == (0.0, 1.0)


def test_a_margin_moves_the_test_but_not_the_interval() -> None:
    values = [-0.4, -0.2, 0.1, -0.3, 0.0]
    plain, moved = of_values(values), of_values(values, margin=1.0)
    assert (plain.mean, plain.low, plain.high) == (moved.mean, moved.low, moved.high)
    assert moved.p == of_values([v + 1 for v in values]).p


@given(VALUES)
def test_the_sign_turns_with_the_sides(values: list[float]) -> None:
    ours = dict(enumerate(values))
    theirs = {seed: 0.5 * value + seed for seed, value in ours.items()}
    found, turned = difference(ours, theirs), difference(theirs, ours)
    assert found is not None
    assert turned is not None
    assert found.mean == pytest.approx(-turned.mean)
    assert found.p == pytest.approx(turned.p)


def by_definition(values: list[float]) -> list[float]:
    """Return Holm's adjusted p: the largest of (m - rank) p over all that are as small or less."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found = [0.0] * len(values)
    for place, index in enumerate(order):
        below = [(len(values) - k) * values[order[k]] for k in range(place + 1)]
        found[index] = min(1.0, max(below))
    return found


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holms_correction_is_its_definition(values: list[float]) -> None:
    found = holm(values)
    assert found == pytest.approx(by_definition(values))
    pairs = sorted((p, f) for p, f in zip(values, found, strict=True) if f is not None)
    assert all(a[1] <= b[1] + 1e-12 for a, b in pairwise(pairs))


def test_unknown_p_values_stay_out_of_the_family() -> None:
    assert holm([None, 0.01, None, 0.04]) == [None, 0.02, None, 0.04]


def test_the_family_errs_as_rarely_as_promised() -> None:
    """Simulate studies of 12 comparisons without any effect, with five seeds each."""
    rng = random.Random(1)
    num_wrong = 0
    for _ in range(600):
        tests = [of_values([rng.gauss(0, 1) for _ in range(5)]).p for _ in range(12)]
        num_wrong += any(p is not None and p < 0.05 for p in holm(tests))
    assert num_wrong / 600 < 0.08


def test_a_large_effect_is_found() -> None:
    rng = random.Random(2)
    tests = [of_values([20 + rng.gauss(0, 2) for _ in range(5)]).p for _ in range(20)]
    assert all(p is not None and p < 0.05 for p in holm(tests))


def test_ranks_are_averaged_over_ties() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: Pearson's correlation of these.
    first, second = [1.0, 2.5, 2.5, 4.0], [1.0, 2.0, 3.0, 4.0]
    mean = 2.5
    covariance = sum((a - mean) * (b - mean) for a, b in zip(first, second, strict=True))
    spread = math.prod(math.sqrt(sum((x - mean) ** 2 for x in xs)) for xs in (first, second))
    assert spearman([3, 8, 8, 9], [10, 20, 30, 40]) == pytest.approx(covariance / spread)
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_a_measure_that_a_seed_lacks_has_no_mean_but_a_difference() -> None:
    base = row([70, 71, 72], [50, 51, 52])
    estimates, differences = summarise(base, row([72, 72, 72], [60, None, 62]), ["ruler", "tokens"])
    assert set(estimates) == {"tokens"}
    assert (differences["ruler"].mean, differences["ruler"].num_pairs) == (10.0, 2)


def test_a_panels_comparisons_are_one_family() -> None:
    base = row([70, 71, 72, 70, 71], [50, 51, 52, 50, 51])
    rows = {
        "a": row([75, 76, 78, 75, 75], [50, 52, 52, 51, 51]),
        "b": row([70, 72, 72, 71, 71], [40, 42, 40, 41, 39]),
    }
    measures = ["short_retention", "ruler", "tokens"]
    found = {name: summarise(base, cells, measures)[1] for name, cells in rows.items()}
    adjusted = adjust(found)
    family = [(v, m) for v in found for m in ("short_retention", "ruler")]
    known = [p for v, m in family if (p := found[v][m].p) is not None]
    assert [adjusted[v][m].p_adjusted for v, m in family] == pytest.approx(by_definition(known))
    assert adjusted["a"]["tokens"].p_adjusted is None


def test_the_front_has_what_nothing_beats() -> None:
    points = {
        "best": (90.0, 50.0, 2.0),
        "cheap": (80.0, 50.0, 1.0),
        "worse": (85.0, 40.0, 2.0),
        "long": (70.0, 60.0, 2.0),
        "same": (90.0, 50.0, 2.0),
    }
    assert front(points) == ["best", "cheap", "long", "same"]
