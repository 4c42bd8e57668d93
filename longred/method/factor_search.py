"""Search for longrope's factors by evolution, after LongRoPE2 (arXiv 2502.20082, section 3.2).

Notation as in `longred.method.rope`. A pair is slow from a critical pair c on. Faster pairs follow
the NTK-aware rule with its end at c, s^(i / c); slow ones have factors of their own, at least s and
rising. In theory c is the first pair that does not turn once within the original window. The paper
finds slower turning pairs undertrained, too, so that the real c is smaller, and searches for it.
The paper's code is not public: ranges and mutations are ours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MOST_SLOW = 2.0
"""Largest factor, as a multiple of s."""

SPREAD = 0.1
"""Standard deviation of a mutation of a factor, of its logarithm."""

KEPT_SHARE = 0.25
"""Share of a round's candidates whose mutations make up the next round."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Factors of all pairs.

    Attributes:
        critical: c, from 1.
        slow: factors of the pairs c to d / 2 - 1.
    """

    critical: int
    slow: tuple[float, ...]

    def factors(self, s: float) -> list[float]:
        """Return the factor of each pair, fastest first."""
        return [*(s ** (i / self.critical) for i in range(self.critical)), *self.slow]


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate and its score; lower is better."""

    candidate: Candidate
    score: float


def by_ntk_rule(num_pairs: int, s: float) -> Candidate:
    """Return the factors of the NTK-aware rule, s^(2i / (d - 2)); the default of longrope."""
    return Candidate(num_pairs - 1, (s,))


def critical_pair(theta: float, dim: int, window: int) -> int:
    """Return the first pair that does not turn once within a window of so many tokens.

    Returns:
        From 1 to d / 2 - 1.
    """
    periods = [2 * math.pi * float(theta) ** (2 * i / dim) for i in range(dim // 2)]
    num_turning = len([period for period in periods if period <= window])
    return min(max(1, num_turning), dim // 2 - 1)


def num_scored(num_rounds: int, population: int) -> int:
    """Return how many candidates `evolve` scores."""
    return population + (num_rounds - 1) * (population - _num_kept(population))


def evolve(
    score: Callable[[Candidate], float],
    *,
    s: float,
    critical: int,
    num_pairs: int,
    num_rounds: int,
    population: int,
    seed: int,
) -> list[list[Scored]]:
    """Search for the candidate with the lowest score.

    The first round holds the NTK-aware rule and critical pairs from `critical` down to half of it,
    each with equal slow factors. Every later round keeps the best candidates and adds mutations of
    them.

    Args:
        score: of a candidate; finite.
        s: factor by which the window grows.
        critical: c in theory.
        num_pairs: d / 2.
        num_rounds: from 1.
        population: candidates in a round, from 2.
        seed: equal seeds and scores give equal candidates.

    Returns:
        The candidates after every round, the best one first.
    """
    rng = np.random.default_rng(seed)
    first = [by_ntk_rule(num_pairs, s)]
    wanted = np.linspace(critical, max(1, critical // 2), population - 1).round()
    for c in dict.fromkeys(int(c) for c in wanted):
        first.append(Candidate(c, (s,) * (num_pairs - c)))
    while len(first) < population:
        first.append(mutate(first[int(rng.integers(len(first)))], rng, s=s, num_pairs=num_pairs))
    rounds = [_ranked([Scored(each, score(each)) for each in first])]
    for _ in range(num_rounds - 1):
        kept = rounds[-1][: _num_kept(population)]
        parents = [kept[int(rng.integers(len(kept)))] for _ in range(population - len(kept))]
        children = [mutate(one.candidate, rng, s=s, num_pairs=num_pairs) for one in parents]
        rounds.append(_ranked([*kept, *(Scored(each, score(each)) for each in children)]))
    return rounds


def mutate(parent: Candidate, rng: np.random.Generator, *, s: float, num_pairs: int) -> Candidate:
    """Return a candidate near another: c moves by up to two pairs, slow factors by some percent."""
    critical = int(np.clip(parent.critical + rng.integers(-2, 3), 1, num_pairs - 1))
    slow = np.array(parent.factors(s)[critical:])
    slow = np.maximum(slow, s) * np.exp(rng.normal(0.0, SPREAD, len(slow)))
    rising = np.maximum.accumulate(np.clip(slow, s, MOST_SLOW * s))
    return Candidate(critical, tuple(rising.tolist()))


def _num_kept(population: int) -> int:
    return max(1, int(population * KEPT_SHARE))


def _ranked(scored: Sequence[Scored]) -> list[Scored]:
    """Return candidates by score; equal ones keep their order."""
    return sorted(scored, key=lambda one: one.score)
