"""Refuses a training that this machine's memory cannot hold, before its weights are loaded."""

import logging
from collections.abc import Mapping

import torch

from longred.cost.advice import advice
from longred.cost.flops import batches
from longred.cost.machine import memory_of
from longred.cost.memory import memory_parts
from longred.cost.plan import TOLERANCE
from longred.cost.shape import ModelShape
from longred.cost.speeds import GIB
from longred.errors import PreflightError
from longred.training.job import TrainingJob

log = logging.getLogger(__name__)


def refuse_what_cannot_fit(
    shape: ModelShape,
    job: TrainingJob,
    lengths: Mapping[str, int],
    device: torch.device,
    *,
    num_here: int,
) -> None:
    """Refuse a training that would not fit even if its plan were wrong by `TOLERANCE`.

    Args:
        shape: of the model.
        job: the training.
        lengths: tokens of a row of each bucket.
        device: where each process trains.
        num_here: processes on this machine.

    Raises:
        PreflightError: it would not; the message names the settings that would make it fit.
    """
    # Processes of one machine have a GPU each, and its memory in common.
    limit = memory_of(device) / (1 if device.type == "cuda" else num_here)
    parts = memory_parts(shape, job, batches(job, lengths), device=device.type)
    needed = sum(parts.values())
    if needed <= limit:
        return
    largest = sorted(parts, key=lambda part: -parts[part])[:3]
    shares = ", ".join(f"{part} {parts[part] / GIB:.1f}" for part in largest)
    text = (
        f"{job.method} needs about {needed / GIB:.1f} GiB ({shares}) and this machine's "
        f"{device.type} has {limit / GIB:.1f} GiB"
    )
    if needed * (1 - TOLERANCE) <= limit:
        log.warning("training: %s; it may run out of memory", text)
        return
    settings = list(advice(shape, job, lengths, kind=device.type, limit_bytes=limit))
    words = "nothing but more GPUs (training.parallel.num_processes) or method lora would fit"
    if settings and settings[-1][1] <= limit:
        together = " ".join(setting for setting, _ in settings)
        words = f"{together} would need {settings[-1][1] / GIB:.1f} GiB"
    raise PreflightError(
        f"{settings[0][0].partition('=')[0] if settings else 'training'}: {text}; {words}"
    )
