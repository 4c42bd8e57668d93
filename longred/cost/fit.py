"""Refuses a training that does not fit this machine's memory, before its weights are loaded."""

import logging
from collections.abc import Callable, Mapping, Sequence

import torch

from longred.cost.advice import Sized, peak, remedies
from longred.cost.calibrate import fastest_product
from longred.cost.flops import batches, step_flops
from longred.cost.machine import memory_of
from longred.cost.memory import memory_parts, reserve_bytes
from longred.cost.plan import TOLERANCE
from longred.cost.shape import ModelShape
from longred.cost.speeds import key_of, known
from longred.errors import PreflightError
from longred.method.job import TrainingJob
from longred.method.layout import Layout
from longred.progress import size

log = logging.getLogger(__name__)


def refuse_what_cannot_fit(
    shape: ModelShape,
    trainings: Sequence[Sized],
    device: torch.device,
    *,
    num_here: int,
    adapters_for: str | None = None,
    can_divide: Callable[[Layout], bool] = lambda layout: True,
) -> None:
    """Refuse trainings that would not fit even if their plan were too high by `TOLERANCE`.

    Log a warning if one fits only within the tolerance or without the reserve.

    Args:
        shape: the model's shape.
        trainings: the trainings, with the row lengths of their buckets.
        device: the device of each process.
        num_here: number of processes on this machine.
        adapters_for, can_divide: see `longred.cost.advice.remedies`.

    Raises:
        PreflightError: one does not fit; the message names what makes all of them fit.
    """
    # Processes on one machine have one GPU each and share the host memory.
    limit = memory_of(device) / (1 if device.type == "cuda" else num_here)
    reserve = reserve_bytes(limit, device=device.type)
    largest = max(trainings, key=lambda sized: peak(shape, [sized], device.type))
    job, lengths = largest
    parts = memory_parts(shape, job, batches(job, lengths), device=device.type)
    needed = sum(parts.values())
    if needed + reserve <= limit:
        return
    most = sorted(parts, key=lambda part: -parts[part])[:3]
    shares = ", ".join(f"{part} {size(parts[part])}" for part in most)
    reserved = f", {size(reserve)} of it for CUDA itself" if reserve else ""
    text = (
        f"{job.method} needs about {size(needed)} ({shares}) and this machine's "
        f"{device.type} has {size(limit)}{reserved}"
    )
    if needed * (1 - TOLERANCE) <= limit:
        log.warning("%s; it may run out of memory", text)
        return
    found = remedies(
        shape,
        trainings,
        kind=device.type,
        limit_bytes=limit - reserve,
        adapters_for=adapters_for,
        can_divide=can_divide,
    )
    ways = [f"{' '.join(one.settings)} ({size(one.memory_bytes)})" for one in found]
    advice = f"with {', or '.join(ways)} it fits" if ways else hopeless(device.type)
    raise PreflightError(f"training: {text}; {advice}")


def hopeless(kind: str) -> str:
    """Return what to do if neither settings nor more devices are enough."""
    machine = "a GPU with more memory" if kind == "cuda" else "a machine with more memory"
    return f"no setting is enough: use {machine}, a smaller model, or a smaller target_window"


def step_and_peak_flops(
    shape: ModelShape, job: TrainingJob, lengths: Mapping[str, int], device: torch.device
) -> tuple[float, float]:
    """Return the FLOPs of one step over all processes, and the peak FLOP/s of one device.

    Together they give the MFU: attention counts as causal, and nothing recomputed counts. The peak
    is the dense one of a known GPU, else the fastest measured matrix product.
    """
    needed = step_flops(shape, job, lengths)
    key = key_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if key is None:
        return needed, fastest_product(device, getattr(torch, job.dtype))
    return needed, known(key, dtype=job.dtype).peak_flops
