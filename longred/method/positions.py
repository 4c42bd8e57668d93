"""Skipped position ids: a row of the original window that spans the target window.

Every function draws all rows at once from the caller's own numpy generator. T is the original
window, T' the target window, s = T'/T. Source: arXiv 2502.07365, section 4.3, and CREAM.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray

from longred.errors import ConfigError

Rows = NDArray[np.int64]
TRUNCATIONS = ("clipped", "renormalised")


def skip_positions(
    kind: str,
    *,
    original_window: int,
    target_window: int,
    num_rows: int,
    generator: np.random.Generator,
    sigma: float = 5.0,
    truncation: str = "clipped",
) -> torch.Tensor:
    """Draw strictly increasing position ids, a row of its own for every text.

    Args:
        kind: a key of `SKIPPERS`.
        original_window: T, the number of tokens of a row.
        target_window: T', the number of positions.
        num_rows: rows to draw.
        generator: the source of randomness; nothing else is used.
        sigma: of the normal that places cream's middle run; 5 in LongReD, 3 in CREAM.
        truncation: `clipped` piles the normal's tails up on both ends, as the published code does;
            `renormalised` spreads them.

    Returns:
        int64 [num_rows, original_window]; the first id is 0, and the last T' - 1 except for pose.

    Raises:
        ConfigError: the kind or truncation is unknown, or the windows leave no room.
    """
    if kind not in SKIPPERS:
        raise ConfigError(f"positions: {kind!r} is not one of {', '.join(SKIPPERS)}")
    if truncation not in TRUNCATIONS:
        raise ConfigError(
            f"training.truncation: {truncation!r} is not one of {', '.join(TRUNCATIONS)}"
        )
    if not sigma > 0:
        raise ConfigError(f"training.sigma: must be larger than 0, got {sigma}")
    if not 2 <= original_window < target_window:
        raise ConfigError(
            f"target_window: must be larger than original_window ({original_window}, at least 2), "
            f"got {target_window}"
        )
    skipper = SKIPPERS[kind]
    rows = skipper(original_window, target_window, num_rows, generator, sigma, truncation)
    return torch.from_numpy(rows)


def _cream(
    window: int,
    target: int,
    num_rows: int,
    generator: np.random.Generator,
    sigma: float,
    truncation: str,
) -> Rows:
    """Head, tail, and a middle run whose end favours the middle of the target window."""
    ends = _ends(window, target, num_rows, generator)
    reach = _reach(target / window, num_rows, generator, sigma, truncation)
    middle = window - 2 * ends
    lowest = ends + -(-(middle - 1) * reach // 2)
    highest = reach * window // 2 - ends - 1
    return _three_runs(window, target, ends, generator.integers(lowest, highest, endpoint=True))


def _uniform(
    window: int,
    target: int,
    num_rows: int,
    generator: np.random.Generator,
    sigma: float,
    truncation: str,
) -> Rows:
    """Head, tail, and a middle run that ends anywhere behind the original window."""
    ends = _ends(window, target, num_rows, generator)
    middle_end = generator.integers(window - ends, target - ends - 1, endpoint=True)
    return _three_runs(window, target, ends, middle_end)


def _pose(
    window: int,
    target: int,
    num_rows: int,
    generator: np.random.Generator,
    sigma: float,
    truncation: str,
) -> Rows:
    """Two runs split at a random point, the second shifted (arXiv 2309.10400)."""
    split = generator.integers(1, window, size=(num_rows, 1))
    shift = generator.integers(0, target - window, size=(num_rows, 1), endpoint=True)
    place = np.arange(window)[None, :]
    return place + np.where(place >= split, shift, 0)


Skipper = Callable[[int, int, int, np.random.Generator, float, str], Rows]

SKIPPERS: dict[str, Skipper] = {"cream": _cream, "uniform": _uniform, "pose": _pose}


def _ends(window: int, target: int, num_rows: int, generator: np.random.Generator) -> Rows:
    """Draw each row's length of head and of tail: a third of the window, or 4s, equally likely."""
    if window * window <= 8 * target:
        raise ConfigError(
            f"original_window: {window} leaves no room for a middle run: head and tail of 4 x "
            f"{target / window:g} tokens each need more than {8 * target / window:g}; use a larger "
            "original_window or a smaller target_window"
        )
    return np.where(generator.random(num_rows) < 0.5, window // 3, 4 * target // window)


def _reach(
    factor: float, num_rows: int, generator: np.random.Generator, sigma: float, truncation: str
) -> Rows:
    """Draw r, the middle run's reach in half windows: a floored normal around 1 + s, in [2, 2s]."""
    highest = math.floor(2 * factor)
    if truncation == "clipped":
        draws = generator.normal(1 + factor, sigma, num_rows)
    else:
        law = NormalDist(1 + factor, sigma)
        inside = generator.uniform(law.cdf(2), law.cdf(highest + 1), num_rows)
        draws = np.array([law.inv_cdf(share) for share in inside])
    return np.clip(np.floor(draws), 2, highest).astype(np.int64)


def _three_runs(window: int, target: int, ends: Rows, middle_end: Rows) -> Rows:
    """Lay out head, middle and tail of every row."""
    place = np.arange(window)[None, :]
    ends = ends[:, None]
    middle = place + (middle_end[:, None] - (window - ends - 1))
    tail = place + (target - window)
    return np.where(place < ends, place, np.where(place < window - ends, middle, tail))
