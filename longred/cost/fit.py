"""Refuses a training that does not fit this machine's memory, before its weights are loaded."""

import logging
from collections.abc import Mapping

import torch

from longred.cost.advice import advice
from longred.cost.calibrate import fastest_product
from longred.cost.flops import batches, step_flops
from longred.cost.machine import memory_of
from longred.cost.memory import memory_parts, reserve_bytes
from longred.cost.plan import TOLERANCE
from longred.cost.shape import ModelShape
from longred.cost.speeds import GIB, key_of, known
from longred.errors import PreflightError
from longred.method.job import TrainingJob

log = logging.getLogger(__name__)


def refuse_what_cannot_fit(
    shape: ModelShape,
    job: TrainingJob,
    lengths: Mapping[str, int],
    device: torch.device,
    *,
    num_here: int,
) -> None:
    """Refuse a training that would not fit even if its plan were too high by `TOLERANCE`.

    Log a warning if it fits only within the tolerance or without the reserve.

    Args:
        shape: the model's shape.
        job: the training.
        lengths: row length of each bucket, tokens.
        device: the device of each process.
        num_here: number of processes on this machine.

    Raises:
        PreflightError: the training does not fit; the message names settings that make it fit.
    """
    # Processes on one machine have one GPU each and share the host memory.
    limit = memory_of(device) / (1 if device.type == "cuda" else num_here)
    parts = memory_parts(shape, job, batches(job, lengths), device=device.type)
    needed = sum(parts.values())
    reserve = reserve_bytes(limit, device=device.type)
    if needed + reserve <= limit:
        return
    largest = sorted(parts, key=lambda part: -parts[part])[:3]
    shares = ", ".join(f"{part} {parts[part] / GIB:.1f}" for part in largest)
    reserved = f", {reserve / GIB:.1f} of it for CUDA itself" if reserve else ""
    text = (
        f"{job.method} needs about {needed / GIB:.1f} GiB ({shares}) and this machine's "
        f"{device.type} has {limit / GIB:.1f} GiB{reserved}"
    )
    if needed * (1 - TOLERANCE) <= limit:
        log.warning("training: %s; it may run out of memory", text)
        return
    left = limit - reserve
    settings = list(advice(shape, job, lengths, kind=device.type, limit_bytes=left))
    words = "only more GPUs (training.parallel.num_processes) would help"
    if settings and settings[-1].memory_bytes <= left:
        last = settings[-1]
        named = " ".join(one.setting for one in ([last] if last.is_alone else settings))
        words = f"{named} would need {last.memory_bytes / GIB:.1f} GiB"
    raise PreflightError(
        f"{settings[0].setting.partition('=')[0] if settings else 'training'}: {text}; {words}"
    )


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
