"""Durations and sizes in words."""

import pytest

from longred.progress import duration, size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 s"),
        (0.04, "under 1 s"),
        (12.4, "12 s"),
        (119.0, "119 s"),
        (600.0, "10 min"),
        (7500.0, "2 h 5 min"),
        (4 * 86400.0, "4.0 days"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [
        (900, "1 KiB"),
        (5 * 2**20, "5 MiB"),
        (340.4 * 2**20, "340 MiB"),
        (1.5 * 2**30, "1.5 GiB"),
        (2048 * 2**30, "2,048.0 GiB"),
    ],
)
def test_sizes(num_bytes: float, words: str) -> None:
    assert size(num_bytes) == words
