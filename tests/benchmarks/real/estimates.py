"""Estimate the seconds of every item on one GPU, and how many steps of training fit.

A small model is bound by memory and launches, so products and attention are counted at RATE, a
quarter of the 790 TFLOP/s that large products reach on an H200; operations are counted as `longred
plan` counts them (`longred.cost`). Written tokens take longred's own estimate, at least 0.5 ms a
layer. START is for a process that loads a model, TRAINING_START for one that compiles a training
and takes its first steps, PROFILE for kernels that are compiled and timed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from longred.cost.evaluation import OTHER, PROMPTS, answer_seconds, new_shares
from longred.cost.flops import Flops, batches, forward_flops
from longred.cost.plan import flops_seconds, step_seconds
from longred.cost.shape import ModelShape
from longred.cost.speeds import Speeds, known
from longred.method.job import TrainingJob

RATE = 0.25 * 790e12
START = 7.0
TRAINING_START = 25.0
PROFILE = 40.0
RESERVE = 30.0
"""Seconds for joining the parts, finding the machine, and the table."""
SHORT_LENGTH = 256
"""Length at which attention of short sets is counted."""


def slow_h200() -> Speeds:
    """Return the rates that the estimates assume."""
    rates = {16384: (RATE, RATE)}
    return replace(known("h200"), matmul_flops=RATE, head_flops=RATE, attention_flops=rates)


def training_step(
    shape: ModelShape, job: TrainingJob, lengths: Mapping[str, int], speeds: Speeds
) -> float:
    """Return the seconds of an optimizer step."""
    return step_seconds(shape, job, batches(job, lengths), speeds)


def reading(shape: ModelShape, length: int, num_tokens: float, speeds: Speeds) -> float:
    """Return the seconds of the loss on rows of a length."""
    flops = forward_flops(shape, length, head=True) * float(num_tokens)
    return flops_seconds(flops, length, speeds)


def ruler(
    shape: ModelShape, length: int, tasks: Sequence[str], count: int, speeds: Speeds
) -> float:
    """Return the seconds of `count` samples of each RULER task at a length, run together."""
    forward, seconds = forward_flops(shape, length, head=False), 0.0
    num_rows: dict[int, int] = {}
    for task in tasks:
        prompts = PROMPTS.get(task, OTHER)
        num_rows[prompts.budget] = num_rows.get(prompts.budget, 0) + count
        linear, attention = new_shares(prompts.num_needles)
        read = Flops(
            linear=forward.linear * linear,
            attention_forward=forward.attention_forward * attention,
        )
        seconds += flops_seconds(read * float(length * count), length, speeds)
    return seconds + sum(
        answer_seconds(shape, speeds, length, budget, rows) for budget, rows in num_rows.items()
    )


def quick(shape: ModelShape, values: Mapping[str, Any], *, is_compared: bool) -> float:
    """Return the seconds of the cheap measurements of a model."""
    speeds = slow_h200()
    losses = (reading(shape, n, values["loss_tokens"], speeds) for n in values["lengths"])
    short = reading(shape, SHORT_LENGTH, values["short_tokens"], speeds)
    return START + sum(losses) + 2 * short + (START if is_compared else 0.0)


def answers(shape: ModelShape, values: Mapping[str, Any], count: int) -> float:
    """Return the seconds of `count` samples of each RULER task at all lengths."""
    tasks, speeds = values["ruler"], slow_h200()
    return START + sum(ruler(shape, n, tasks, count, speeds) for n in values["lengths"])
