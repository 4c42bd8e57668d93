"""Plans one training: seconds, memory, disk, and whether it fits a device."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longred.cost.flops import (
    Batches,
    Flops,
    batches,
    needed_flops,
    recomputed_flops,
    step_flops,
    teacher_flops,
    teacher_length,
)
from longred.cost.memory import (
    disk_bytes,
    dtype_bytes,
    host_bytes,
    memory_parts,
    num_trained,
    reserve_bytes,
    shards_of,
)
from longred.cost.passes import elementwise_bytes
from longred.cost.shape import ModelShape
from longred.cost.speeds import Speeds
from longred.method.job import TrainingJob

TOLERANCE = 0.15
"""Relative error allowed for a plan before a training is refused."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The cost of one training.

    Attributes:
        method: the training method.
        num_parameters, num_trained: weights of the model, and trained weights.
        num_processes: processes, one per GPU.
        tokens: tokens of the whole training.
        step_tokens: tokens per step, all processes.
        flops: needed operations per step, all processes; attention counts as causal.
        flops_by_bucket: needed operations per token.
        executed_flops: operations per step including recomputation, all processes.
        step_seconds, seconds: duration of a step and of the whole training.
        memory: peak memory of one process by part, bytes.
        host_bytes: offloaded optimizer state in host memory, all processes.
        disk: checkpoints and result, bytes.
        limit_bytes: memory of one device.
        reserve_bytes: device memory to leave free, see `longred.cost.memory.reserve_bytes`.
        mfu: model FLOPs utilisation.
    """

    method: str
    num_parameters: int
    num_trained: int
    num_processes: int
    tokens: int
    step_tokens: int
    flops: float
    flops_by_bucket: Mapping[str, float]
    executed_flops: float
    step_seconds: float
    seconds: float
    memory: Mapping[str, float]
    host_bytes: float
    disk: Mapping[str, float]
    limit_bytes: float
    reserve_bytes: float
    mfu: float

    @property
    def memory_bytes(self) -> float:
        """Peak memory of one process, bytes."""
        return sum(self.memory.values())

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all processes."""
        return self.step_tokens / self.step_seconds

    @property
    def fits(self) -> bool:
        """Whether peak and reserve fit the device."""
        return self.memory_bytes + self.reserve_bytes <= self.limit_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        values = dataclasses.asdict(self)
        values["memory_bytes"] = self.memory_bytes
        values["tokens_per_second"] = self.tokens_per_second
        values["fits"] = self.fits
        return values


def plan_training(
    shape: ModelShape, job: TrainingJob, lengths: Mapping[str, int], speeds: Speeds
) -> TrainingPlan:
    """Plan a training on a device.

    Args:
        shape: the model's shape.
        job: the training.
        lengths: row length of each bucket, tokens.
        speeds: the rates of the device.
    """
    work = batches(job, lengths)
    processes = job.layout.num_processes
    memory = memory_parts(shape, job, work, device=speeds.kind)
    step_tokens = sum(batch.rows * batch.length for batch in work)
    needed = step_flops(shape, job, lengths)
    repeated = sum(recomputed_flops(shape, job, batch).total for batch in work) * processes
    seconds = step_seconds(shape, job, work, speeds)
    return TrainingPlan(
        method=job.method,
        num_parameters=shape.num_parameters,
        num_trained=num_trained(shape, job),
        num_processes=processes,
        tokens=step_tokens * job.num_steps,
        step_tokens=step_tokens,
        flops=needed,
        flops_by_bucket={
            batch.bucket: needed_flops(shape, job, batch).total / batch.step_tokens
            for batch in work
        },
        executed_flops=needed + repeated,
        step_seconds=seconds,
        seconds=seconds * job.num_steps,
        memory=memory,
        host_bytes=host_bytes(shape, job, device=speeds.kind) * processes,
        disk=disk_bytes(shape, job),
        limit_bytes=speeds.memory_bytes,
        reserve_bytes=reserve_bytes(speeds.memory_bytes, device=speeds.kind),
        mfu=needed / seconds / processes / speeds.peak_flops,
    )


def step_seconds(
    shape: ModelShape, job: TrainingJob, work: Sequence[Batches], speeds: Speeds
) -> float:
    """Return the seconds of one step: products, attention, memory-bound passes, and the update."""
    total = update_seconds(shape, job, speeds)
    for batch in work:
        flops = needed_flops(shape, job, batch) + recomputed_flops(shape, job, batch)
        compute = flops_seconds(flops, batch.length, speeds)
        if job.fp8:
            in_8_bits = flops.linear - teacher_flops(shape, job, batch).linear
            compute -= (1 - 1 / FP8_SPEEDUP) * in_8_bits / speeds.matmul_flops
        compute += elementwise_bytes(shape, job, batch) / (PASS_SHARE * speeds.bandwidth)
        travel = link_seconds(shape, job, batch, speeds)
        # Communication overlaps with computation except for its exposed share.
        total += max(compute + EXPOSED_SHARE * travel, travel)
    return total


FP8_SPEEDUP = 1.5
"""Speed-up of a decoder's fp8 products, scaling and casts included.

torchtitan publishes 1.28 for whole steps of Llama-3-8B on H100.
"""

PASS_SHARE = 0.9
"""Share of the copy bandwidth that norms, sums and other memory-bound passes reach."""

EXPOSED_SHARE = 0.2
"""Share of the communication time that computation does not hide.

The first gather and the last reduction of a pass are exposed, and NCCL kernels occupy part of the
GPU.
"""


def flops_seconds(flops: Flops, length: int, speeds: Speeds) -> float:
    """Return the seconds of matrix products and attention."""
    forward, backward = speeds.attention(length)
    return (
        flops.linear / speeds.matmul_flops
        # Relations are always computed in float32.
        + flops.relations / (speeds.float32_flops or speeds.matmul_flops)
        + flops.head / speeds.head_flops
        + flops.attention_forward / forward
        + flops.attention_backward / backward
    )


def update_seconds(shape: ModelShape, job: TrainingJob, speeds: Speeds) -> float:
    """Return the seconds of gradient clipping and the optimizer step.

    With offloading, both copies of the state overlap with the step: the slowest counts.
    """
    own = num_trained(shape, job) / shards_of(job)
    seconds = own * (12.0 + 28.0) / (PASS_SHARE * speeds.bandwidth)
    crossing = host_bytes(shape, job, device=speeds.kind)
    return max(seconds, crossing / HOST_BANDWIDTH)


HOST_BANDWIDTH = 25e9
"""Bytes per second between host and GPU in each direction at the same time (PCIe 5)."""


def link_seconds(shape: ModelShape, job: TrainingJob, batch: Batches, speeds: Speeds) -> float:
    """Return the seconds of communicating sharded weights and gradients for a bucket.

    In each micro-batch, decoder weights are gathered in the compute dtype for forward and again for
    backward; embeddings are gathered once, in float32. Gradients are reduced in float32. The
    teacher's weights are gathered once. Replicas only reduce gradients.
    """
    shards, processes = shards_of(job), job.layout.num_processes
    if processes == 1 or not speeds.link_bandwidth:
        return 0.0
    width = dtype_bytes(job)
    others = shape.num_parameters - shape.num_linear
    gathered = width * 2 * shape.num_linear + 4.0 * others
    summed = 4.0 * num_trained(shape, job)
    if teacher_length(job, batch):
        gathered += width * shape.num_linear
        gathered += 0.0 if job.recipe.trains_adapters else 4.0 * shape.num_head
    # A ring transfers everything except a process's own part.
    gathered *= (shards - 1) / shards
    summed *= (processes - 1) / processes
    return (gathered + summed) * batch.count / speeds.link_bandwidth
