"""Skipped position ids: a row of the original window that spans the target window.

All rows are drawn at once from the caller's own numpy generator. T is the original window, T' the
target window, s = T'/T. Source: arXiv 2502.07365, section 4.3, and CREAM (2406.07138).
"""

import math
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray

from longred.errors import ConfigError

Rows = NDArray[np.int64]
TRUNCATIONS = ("clipped", "renormalised")
SKIPPERS = ("cream", "uniform", "pose", "pose-anywhere")
"""How positions skip. cream and uniform have three runs: head, tail, and a middle run whose end
favours the middle of the target window (cream) or lies anywhere behind the original window
(uniform). pose has two runs, the second one shifted; it splits the row in its first half, as PoSE
does (2309.10400), and pose-anywhere at any token."""


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
    """Draw strictly increasing position ids, independently for every row.

    Args:
        kind: one of `SKIPPERS`.
        original_window: T, tokens of a row.
        target_window: T', number of positions.
        num_rows: rows to draw.
        generator: the only source of randomness.
        sigma: spread of the normal that places cream's middle run; 5 in LongReD, 3 in CREAM.
        truncation: `clipped` piles up the normal's tails at both ends, as the published code does;
            `renormalised` spreads them.

    Returns:
        int64 [num_rows, original_window]; the first id is 0, and the last T' - 1 for cream and
        uniform.

    Raises:
        ConfigError: the kind or truncation is unknown, or the windows leave no room.
    """
    window, target = original_window, target_window
    if kind not in SKIPPERS:
        raise ConfigError(f"positions: {kind!r} is not one of {', '.join(SKIPPERS)}")
    if truncation not in TRUNCATIONS:
        raise ConfigError(
            f"training.truncation: {truncation!r} is not one of {', '.join(TRUNCATIONS)}"
        )
    if not sigma > 0:
        raise ConfigError(f"training.sigma: must be larger than 0, got {sigma}")
    if not 2 <= window < target:
        raise ConfigError(
            f"target_window: must be larger than original_window ({window}, at least 2), "
            f"got {target}"
        )
    index = np.arange(window)[None, :]
    if kind in ("pose", "pose-anywhere"):
        last = (window + 1) // 2 if kind == "pose" else window - 1
        split = generator.integers(1, last, size=(num_rows, 1), endpoint=True)
        shift = generator.integers(0, target - window, size=(num_rows, 1), endpoint=True)
        return torch.from_numpy(index + np.where(index >= split, shift, 0))
    ends = _ends(window, target, num_rows, generator)
    if kind == "cream":
        reach = _reach(target / window, num_rows, generator, sigma, truncation)
        lowest = ends + -(-(window - 2 * ends - 1) * reach // 2)
        highest = reach * window // 2 - ends - 1
    else:
        lowest, highest = window - ends, target - ends - 1
    middle_end = generator.integers(lowest, highest, endpoint=True)[:, None]
    ends = ends[:, None]
    middle = index + (middle_end - (window - ends - 1))
    tail = index + (target - window)
    rows = np.where(index < ends, index, np.where(index < window - ends, middle, tail))
    return torch.from_numpy(rows)


def _ends(window: int, target: int, num_rows: int, generator: np.random.Generator) -> Rows:
    """Draw each row's length of head and tail: a third of the window, or 4s, equally likely."""
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
    """Draw r, how far the middle run reaches, in half windows: a floored normal, in [2, 2s]."""
    highest = math.floor(2 * factor)
    if truncation == "clipped":
        draws = generator.normal(1 + factor, sigma, num_rows)
    else:
        law = NormalDist(1 + factor, sigma)
        inside = generator.uniform(law.cdf(2), law.cdf(highest + 1), num_rows)
        draws = np.array([law.inv_cdf(share) for share in inside])
    return np.clip(np.floor(draws), 2, highest).astype(np.int64)
