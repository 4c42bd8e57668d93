"""Measure clipping and one optimizer update, with the state on the GPU and on the host.

Uses few layers, because the first step with the state on the host pins all of it, which takes tens
of seconds at full depth. Each weight is updated independently, so the time is proportional to the
number of weights.
"""

import dataclasses
from typing import Any

import torch

from gpu.child import Check
from gpu.sizes import shallow, shape_at, speeds_of
from gpu.steps import backward, release, trainer_at
from longred.cost.calibrate import timed
from longred.cost.plan import update_seconds
from longred.training.optimizer import build_optimizer, update
from longred.training.trainer import Trainer

REPEATS = 3


def measure(check: Check) -> None:
    """Measure with the state in both places, on the same weights and gradients."""
    layers = shallow(check)
    shape, speeds = shape_at(check, layers), speeds_of(check)
    with trainer_at(check, layers, {"optimizer_offload": False}) as (trainer, batches):
        for name, offload in (("on-gpu", False), ("on-host", True)):
            job = dataclasses.replace(trainer.job, optimizer_offload=offload)
            trainer.optimizer = build_optimizer(trainer.student, job)
            release(trainer.device)
            # Only long rows give every weight a gradient, including the output embedding.
            first, *times = _updates(trainer, batches["long"])
            seconds = sorted(times)[len(times) // 2]
            check.line(
                name,
                settings={"layers": layers, "optimizer_offload": offload},
                measured={"seconds": seconds, "first_seconds": first},
                planned={"seconds": update_seconds(shape, job, speeds)},
                num_parameters=shape.num_parameters,
            )


def _updates(trainer: Trainer, batch: Any) -> list[float]:
    """Return the times of the first update, which creates the state, and of REPEATS more."""
    times = []
    for step in range(1, REPEATS + 2):
        backward(trainer, batch)

        def work(step: int = step) -> None:
            torch.nn.utils.clip_grad_norm_(trainer.student.parameters(), trainer.job.max_grad_norm)
            update(trainer.optimizer, step, trainer.job)

        times.append(timed(work, trainer.device))
    return times
