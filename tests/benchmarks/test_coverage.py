"""95 % intervals of scores hold the true value in 93 % or more of simulated evaluations."""

import numpy as np
import pytest
from intervals import STATISTICS, Design, coverage, ends_of, replaced_ends, simulate

RATES = ((0.5, 0.5), (0.8, 0.7), (0.9, 0.95), (0.97, 0.97), (0.99, 0.99), (0.99, 0.5), (0.05, 0.6))
DESIGNS = (
    *(Design((size,), (1.0,)) for size in (20, 50, 100)),
    Design((20,) * 4, (0.55, 0.25, 0.15, 0.05)),
    Design((20, 50, 100), (1 / 3,) * 3),
    Design((20,) * 13, (1 / 13,) * 13),
)


@pytest.mark.parametrize("kind", ["binary", "quarters", "f1"])
@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_intervals_hold_the_true_value(design: Design, kind: str) -> None:
    rng = np.random.default_rng(len(design.sizes) + design.sizes[0])
    for number, rates in enumerate(RATES):
        found = simulate(design, kind, rates, (0.0, 0.8)[number % 2], 800, rng)
        for statistic in STATISTICS:
            share = coverage(ends_of(found, statistic), found.true[statistic])
            assert share >= 0.93, (statistic, rates)


def test_what_was_replaced_missed_the_true_value_near_100_percent() -> None:
    """The simulation finds intervals that are too narrow."""
    rng = np.random.default_rng(0)
    found = simulate(Design((20,), (1.0,)), "binary", (0.99, 0.97), 0.5, 100, rng)
    for statistic in STATISTICS:
        assert coverage(replaced_ends(found, statistic, rng), found.true[statistic]) < 0.8
