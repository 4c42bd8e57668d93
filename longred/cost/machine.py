"""Reads this machine's memory; needs no package besides torch."""

import resource
import sys
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_MEMINFO = Path("/proc/meminfo")


def memory_of(device: torch.device) -> float:
    """Return the memory available to a training, bytes: the GPU's, or the container's limit."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    found = [float("inf")]
    if _MEMINFO.is_file():
        total = _MEMINFO.read_text(encoding="ascii").split("MemTotal:")[1].split()[0]
        found.append(1024.0 * int(total))
    if _CGROUP.is_file():
        limit = _CGROUP.read_text(encoding="ascii").strip()
        found.append(float("inf") if limit == "max" else float(limit))
    return min(found)


def peak_bytes(device: torch.device) -> float:
    """Return this process's peak memory, bytes: allocated on the GPU, or resident on the host."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak * (1 if sys.platform == "darwin" else 1024))
