"""The evolutionary search for longrope's factors, on scores that are known."""

import math

import numpy as np
import pytest

from longred.method.factor_search import (
    Candidate,
    by_ntk_rule,
    critical_pair,
    evolve,
    mutate,
    num_scored,
)
from longred.method.rope import ROPE_METHODS, Window

S, PAIRS = 4.0, 16


def test_factors_follow_the_ntk_rule_up_to_the_critical_pair() -> None:
    factors = Candidate(3, (4.0, 5.0)).factors(S)
    assert factors == pytest.approx([1.0, 4 ** (1 / 3), 4 ** (2 / 3), 4.0, 5.0], rel=1e-12)


def test_the_whole_ntk_rule_is_longropes_default() -> None:
    window = Window(original=256, target=1024, factor=S, dim=2 * PAIRS)
    made = ROPE_METHODS["longrope"].rescale({"rope_theta": 1e4}, window, {})
    assert by_ntk_rule(PAIRS, S).factors(S) == pytest.approx(made["long_factor"], rel=1e-12)


@pytest.mark.parametrize(
    ("theta", "dim", "window", "expected"),
    [
        # Llama-3-8B: 2π 500,000^(2i / 128) passes 8,192 at i = 35, which is dimension 70.
        (5e5, 128, 8192, 35),
        (1e4, 16, 256, 4),
        (10.0, 16, 256, 7),
        (1e9, 16, 1, 1),
    ],
)
def test_critical_pair(theta: float, dim: int, window: int, expected: int) -> None:
    assert critical_pair(theta, dim, window) == expected


def test_mutations_rise_and_stay_in_range() -> None:
    rng, one = np.random.default_rng(0), Candidate(8, (S,) * 8)
    seen = set()
    for _ in range(500):
        one = mutate(one, rng, s=S, num_pairs=PAIRS)
        factors = one.factors(S)
        seen.add(one.critical)
        assert len(factors) == PAIRS
        assert 1 <= one.critical <= PAIRS - 1
        assert factors == sorted(factors)
        assert all(S <= factor <= 2 * S for factor in one.slow)
    assert len(seen) == PAIRS - 1


def distance(candidate: Candidate) -> float:
    """A score with its best at critical pair 6 and rising slow factors."""
    best = Candidate(6, tuple(np.linspace(S, 1.5 * S, PAIRS - 6))).factors(S)
    pairs = zip(candidate.factors(S), best, strict=True)
    return math.sqrt(sum(math.log(x / y) ** 2 for x, y in pairs))


@pytest.mark.parametrize(("num_rounds", "population"), [(1, 2), (3, 5), (20, 12)])
def test_the_best_gets_better_and_the_number_of_scores_is_known(
    num_rounds: int, population: int
) -> None:
    asked: list[Candidate] = []

    def score(candidate: Candidate) -> float:
        asked.append(candidate)
        return distance(candidate)

    settings = {"s": S, "critical": 10, "num_pairs": PAIRS}
    settings |= {"num_rounds": num_rounds, "population": population, "seed": 1}
    rounds = evolve(score, **settings)
    assert len(asked) == num_scored(num_rounds, population)
    assert by_ntk_rule(PAIRS, S) in asked[:population]
    assert [len(ranked) for ranked in rounds] == [population] * num_rounds
    best = [ranked[0].score for ranked in rounds]
    assert best == sorted(best, reverse=True)
    assert best[-1] == min(map(distance, asked))
    assert evolve(distance, **settings) == rounds
    if num_rounds == 20:
        assert best[-1] < 0.4 * best[0]
        assert abs(rounds[-1][0].candidate.critical - 6) <= 1
        assert evolve(distance, **{**settings, "seed": 2}) != rounds
