import math
from collections import Counter
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longred.errors import ConfigError
from longred.method.positions import SKIPPERS, _reach, skip_positions


def draw(
    kind: str, window: int, target: int, rows: int, seed: int = 0, **extra: object
) -> torch.Tensor:
    return skip_positions(
        kind,
        original_window=window,
        target_window=target,
        num_rows=rows,
        generator=np.random.default_rng(seed),
        **extra,  # type: ignore[arg-type]
    )


def runs(row: list[int]) -> list[tuple[int, int]]:
    """First and last id of every stretch of consecutive ids."""
    found = [[row[0], row[0]]]
    for place in row[1:]:
        if place == found[-1][1] + 1:
            found[-1][1] = place
        else:
            found.append([place, place])
    return [(first, last) for first, last in found]


@settings(max_examples=60, deadline=None)
@given(
    window=st.integers(40, 300),
    factor=st.sampled_from([1.5, 2, 2.75, 3, 4]),
    seed=st.integers(0, 2**32),
    truncation=st.sampled_from(["clipped", "renormalised"]),
)
def test_rows_are_increasing_and_span_the_target(
    window: int, factor: float, seed: int, truncation: str
) -> None:
    target = int(window * factor)
    for kind in SKIPPERS:
        rows = draw(kind, window, target, 20, seed, truncation=truncation)
        assert rows.dtype == torch.int64
        assert rows.shape == (20, window)
        assert (rows.diff(dim=1) >= 1).all()
        assert (rows[:, 0] == 0).all()
        assert (rows[:, -1] < target).all()
        is_pose = kind.startswith("pose")
        if not is_pose:
            assert (rows[:, -1] == target - 1).all()
        assert all(len(runs(row)) <= (2 if is_pose else 3) for row in rows.tolist())


def test_head_and_tail_are_a_third_or_four_factors() -> None:
    window, target = 256, 1024
    for kind in ("cream", "uniform"):
        lengths: Counter[int] = Counter()
        for row in draw(kind, window, target, 2000).tolist():
            stretches = runs(row)
            if len(stretches) == 3:
                (_, head), _, (tail, _) = stretches
                assert head + 1 == target - tail
                lengths[head + 1] += 1
        assert set(lengths) == {window // 3, 16}
        assert abs(lengths[16] / sum(lengths.values()) - 0.5) < 0.06


def thirds(rows: torch.Tensor, target: int) -> torch.Tensor:
    """Return which rows have head and tail of a third; a middle run can join one, never both."""
    end = rows.shape[1] // 3
    return (rows[:, end - 1] == end - 1) & (rows[:, -end] == target - end)


def middle_ends(
    kind: str, window: int, target: int, rows: int, end: int, **extra: object
) -> Counter[int]:
    """Count the last ids of the middle run over the rows whose head and tail are `end` long."""
    found: Counter[int] = Counter()
    positions = draw(kind, window, target, rows, **extra)
    chosen = positions[thirds(positions, target) == (end == window // 3)]
    found.update(chosen[:, window - end - 1].tolist())
    return found


def cream_law(
    window: int, factor: int, end: int, sigma: float, truncation: str
) -> dict[int, float]:
    """Return the distribution of the middle run's end, summed over r by brute force."""
    normal = NormalDist(1 + factor, sigma)
    middle = window - 2 * end
    law: Counter[int] = Counter()
    for r in range(2, 2 * factor + 1):
        low = normal.cdf(r) if r > 2 or truncation == "renormalised" else 0.0
        high = normal.cdf(r + 1) if r < 2 * factor or truncation == "renormalised" else 1.0
        share = high - low
        if truncation == "renormalised":
            share /= normal.cdf(2 * factor + 1) - normal.cdf(2)
        first = math.ceil(end + (middle - 1) * r / 2)
        last = math.floor(r / 2 * window - end - 1)
        for place in range(first, last + 1):
            law[place] += share / (last - first + 1)
    return dict(law)


@pytest.mark.parametrize("truncation", ["clipped", "renormalised"])
@pytest.mark.parametrize("sigma", [3.0, 5.0])
@pytest.mark.parametrize("third", [True, False])
def test_cream_follows_the_published_law(truncation: str, sigma: float, third: bool) -> None:
    window, factor, rows = 60, 4, 60_000
    end = window // 3 if third else 4 * factor
    law = cream_law(window, factor, end, sigma, truncation)
    found = middle_ends(
        "cream", window, factor * window, rows, end, sigma=sigma, truncation=truncation
    )
    total = sum(found.values())
    assert abs(total / rows - 0.5) < 0.01
    assert set(found) <= set(law)
    assert abs(sum(law.values()) - 1) < 1e-12
    deviation = sum((found[e] - total * p) ** 2 / (total * p) for e, p in law.items() if p > 0)
    freedom = len(law) - 1
    # Chi-square within five standard deviations of its mean.
    assert deviation < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("truncation", ["clipped", "renormalised"])
@pytest.mark.parametrize(("factor", "sigma"), [(4, 5.0), (4, 3.0), (16, 5.0), (2.75, 3.0)])
def test_every_reach_has_its_probability(truncation: str, factor: float, sigma: float) -> None:
    """r = floor of the normal around 1 + s, clipped to [2, 2s] or truncated to [2, 2s + 1)."""
    num_rows, normal = 100_000, NormalDist(1 + factor, sigma)
    last = math.floor(2 * factor)
    shares = {r: normal.cdf(r + 1) - normal.cdf(r) for r in range(2, last + 1)}
    if truncation == "clipped":
        shares[2], shares[last] = normal.cdf(3), 1 - normal.cdf(last)
    total = sum(shares.values())
    assert truncation == "renormalised" or abs(total - 1) < 1e-12
    drawn = Counter(_reach(factor, num_rows, np.random.default_rng(0), sigma, truncation).tolist())
    assert set(drawn) <= set(shares)
    for reach, share in shares.items():
        expected = share / total
        spread = math.sqrt(expected * (1 - expected) / num_rows)
        assert abs(drawn[reach] / num_rows - expected) < 5 * spread, reach


def test_published_shares_of_the_clipped_ends() -> None:
    # At s = 4 and sigma = 5, reach 2 gets 34 % and reach 8 gets 27 %.
    law = NormalDist(5, 5)
    assert abs(law.cdf(3) - 0.34) < 0.005
    assert abs(1 - law.cdf(8) - 0.27) < 0.005
    rows = draw("cream", 256, 1024, 20_000)
    third = rows[thirds(rows, 1024)]
    # With head and tail of a third, reach 2 alone leaves no gap before the middle run.
    joined = (third[:, 85:171].diff(dim=1).amax(dim=1) == 1) & (third[:, 85] == 85)
    assert abs(joined.double().mean().item() - 0.34) < 0.03


@pytest.mark.parametrize("third", [True, False])
def test_uniform_covers_its_interval_evenly(third: bool) -> None:
    window, target, rows = 60, 240, 40_000
    end = 20 if third else 16
    found = middle_ends("uniform", window, target, rows, end)
    places = range(window - end, target - end)
    assert set(found) == set(places)
    expected = sum(found.values()) / len(places)
    deviation = sum((found[e] - expected) ** 2 / expected for e in places)
    assert deviation < len(places) + 5 * math.sqrt(2 * len(places))


@pytest.mark.parametrize(("kind", "last"), [("pose", 10), ("pose-anywhere", 19)])
def test_pose_splits_and_shifts_evenly(kind: str, last: int) -> None:
    rows = draw(kind, 20, 80, 40_000)
    shifts = Counter((rows[:, -1] - 19).tolist())
    assert set(shifts) == set(range(61))
    assert max(abs(n * 61 / 40_000 - 1) for n in shifts.values()) < 0.2
    moved = rows[rows[:, -1] > 19]
    splits = Counter((moved.diff(dim=1) != 1).int().argmax(dim=1).add(1).tolist())
    assert set(splits) == set(range(1, last + 1))
    assert max(abs(n * last / len(moved) - 1) for n in splits.values()) < 0.2


def test_pose_splits_an_odd_row_up_to_its_middle_token() -> None:
    rows = draw("pose", 7, 28, 4000)
    moved = rows[rows[:, -1] > 6]
    assert set((moved.diff(dim=1) != 1).int().argmax(dim=1).add(1).tolist()) == {1, 2, 3, 4}
    assert set(map(tuple, draw("pose", 2, 4, 100).tolist())) == {(0, 1), (0, 2), (0, 3)}


def test_only_the_given_generator_is_used() -> None:
    np.random.seed(0)
    state = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    for kind in SKIPPERS:
        assert torch.equal(draw(kind, 64, 256, 5, seed=3), draw(kind, 64, 256, 5, seed=3))
        assert not torch.equal(draw(kind, 64, 256, 5, seed=3), draw(kind, 64, 256, 5, seed=4))
        rows = draw(kind, 64, 256, 50, seed=3)
        assert len({tuple(row) for row in rows.tolist()}) > 10
    assert np.array_equal(state, np.random.get_state()[1])


@pytest.mark.parametrize("kind", ["cream", "uniform"])
def test_windows_without_room_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="original_window: 32 leaves no room"):
        draw(kind, 32, 128, 1)
    draw(kind, 33, 132, 50)


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="'creme' is not one of cream, uniform, pose"):
        draw("creme", 64, 256, 1)
    with pytest.raises(ConfigError, match="target_window"):
        draw("pose", 64, 64, 1)
    with pytest.raises(ConfigError, match=r"training\.truncation"):
        draw("cream", 64, 256, 1, truncation="none")
    with pytest.raises(ConfigError, match=r"training\.sigma"):
        draw("cream", 64, 256, 1, sigma=0.0)
