"""How long a call takes, on a GPU or a CPU."""

import time
from collections.abc import Callable

import torch


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def median_seconds(
    work: Callable[[], object], device: torch.device, *, at_least: float = 0.2
) -> float:
    """Return the median of many calls after a first that does not count."""
    work()
    times: list[float] = []
    while sum(times) < at_least or len(times) < 5:
        times.append(timed(work, device))
    return sorted(times)[len(times) // 2]
