"""What a training takes: seconds, memory, disk, and whether it fits."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longred.cost.advice import Setting, advice
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
"""How far a plan may be wrong; a training is refused only where it would not fit even so."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What one training takes.

    Attributes:
        method: the method.
        num_parameters, num_trained: weights of the model, and those that are trained.
        num_processes: one a GPU.
        tokens: of the whole training.
        step_tokens: of one step, all processes.
        flops: of one step, needed, all processes; attention causal.
        flops_by_bucket: a token's, needed.
        executed_flops: of one step with what is computed again, all processes.
        step_seconds: of one step.
        seconds: of the whole training.
        memory: peak of one process by part, bytes.
        host_bytes: optimizer state in host memory, all processes.
        disk: checkpoints and result, bytes.
        limit_bytes: what one device has.
        reserve_bytes: of that, what is left free: see `longred.cost.memory.reserve_bytes`.
        advice: what would make it fit, see `longred.cost.advice`.
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
    advice: tuple[Setting, ...] = ()

    @property
    def memory_bytes(self) -> float:
        """Peak of one process."""
        return sum(self.memory.values())

    @property
    def tokens_per_second(self) -> float:
        """Of all processes."""
        return self.step_tokens / self.step_seconds

    @property
    def fits(self) -> bool:
        """Whether the peak and the reserve are not more than what the device has."""
        return self.memory_bytes + self.reserve_bytes <= self.limit_bytes

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        values = dataclasses.asdict(self)
        values["memory_bytes"] = self.memory_bytes
        values["tokens_per_second"] = self.tokens_per_second
        values["fits"] = self.fits
        values["advice"] = [
            {
                **setting._asdict(),
                "fits": setting.memory_bytes + self.reserve_bytes <= self.limit_bytes,
            }
            for setting in self.advice
        ]
        return values


def plan_training(
    shape: ModelShape, job: TrainingJob, lengths: Mapping[str, int], speeds: Speeds
) -> TrainingPlan:
    """Return what a training takes on a device.

    Args:
        shape: of the model.
        job: the training.
        lengths: tokens of a row of each bucket.
        speeds: of the device.
    """
    work = batches(job, lengths)
    processes = job.layout.num_processes
    memory = memory_parts(shape, job, work, device=speeds.kind)
    step_tokens = sum(batch.rows * batch.length for batch in work)
    needed = step_flops(shape, job, lengths)
    repeated = sum(recomputed_flops(shape, job, batch).total for batch in work) * processes
    seconds = step_seconds(shape, job, work, speeds)
    plan = TrainingPlan(
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
    if plan.fits:
        return plan
    limit = plan.limit_bytes - plan.reserve_bytes
    found = advice(shape, job, lengths, kind=speeds.kind, limit_bytes=limit)
    return dataclasses.replace(plan, advice=tuple(found))


def step_seconds(
    shape: ModelShape, job: TrainingJob, work: Sequence[Batches], speeds: Speeds
) -> float:
    """Return the time of one step: products, attention, passes over memory, and the update."""
    total = update_seconds(shape, job, speeds)
    for batch in work:
        flops = needed_flops(shape, job, batch) + recomputed_flops(shape, job, batch)
        compute = flops_seconds(flops, batch.length, speeds)
        if job.fp8:
            in_8_bits = flops.linear - teacher_flops(shape, job, batch).linear
            compute -= (1 - 1 / FP8_SPEEDUP) * in_8_bits / speeds.matmul_flops
        compute += elementwise_bytes(shape, job, batch) / (PASS_SHARE * speeds.bandwidth)
        travel = link_seconds(shape, job, batch, speeds)
        # What travels is hidden behind the computing, but for its share that is not.
        total += max(compute + EXPOSED_SHARE * travel, travel)
    return total


FP8_SPEEDUP = 1.5
"""Of a decoder's products in 8-bit floats, their scales and roundings included.

Published steps of Llama-3-8B on H100 are 1.28 times as fast for it as a whole (torchtitan).
"""

PASS_SHARE = 0.9
"""Of a copy's bytes a second, what norms, sums and other passes over memory reach."""

EXPOSED_SHARE = 0.2
"""Of the time that weights and gradients travel between GPUs, what computing does not hide.

The first gathering and the last sum of a pass wait, and NCCL's kernels take a part of the GPU.
"""


def flops_seconds(flops: Flops, length: int, speeds: Speeds) -> float:
    """Return the time that operations take in products and attention."""
    forward, backward = speeds.attention(length)
    return (
        flops.linear / speeds.matmul_flops
        # Relations are taken in float32, whatever the models compute in.
        + flops.relations / (speeds.float32_flops or speeds.matmul_flops)
        + flops.head / speeds.head_flops
        + flops.attention_forward / forward
        + flops.attention_backward / backward
    )


def update_seconds(shape: ModelShape, job: TrainingJob, speeds: Speeds) -> float:
    """Return the time of clipping and the optimizer's step, or of its state's way from the host.

    Both ways and the step go on at once: the slowest counts.
    """
    own = num_trained(shape, job) / shards_of(job)
    seconds = own * (12.0 + 28.0) / (PASS_SHARE * speeds.bandwidth)
    crossing = host_bytes(shape, job, device=speeds.kind)
    return max(seconds, crossing / HOST_BANDWIDTH)


HOST_BANDWIDTH = 25e9
"""Bytes a second between host and GPU in each direction, both at once (PCIe 5)."""


def link_seconds(shape: ModelShape, job: TrainingJob, batch: Batches, speeds: Speeds) -> float:
    """Return the time in which sharded weights and gradients of a bucket travel between GPUs.

    In each micro-batch weights are gathered for the forward and again for the backward pass: those
    of decoder layers in the compute type, the embeddings in float32, which stay gathered.
    Gradients are summed in float32. The teacher's are gathered once. Replicas only sum gradients.
    """
    shards, processes = shards_of(job), job.layout.num_processes
    if processes == 1 or not speeds.link_bandwidth:
        return 0.0
    width = 2.0 if job.dtype == "bfloat16" else 4.0
    others = shape.num_parameters - shape.num_linear
    gathered = width * 2 * shape.num_linear + 4.0 * others
    summed = 4.0 * num_trained(shape, job)
    if teacher_length(job, batch):
        gathered += width * shape.num_linear
        gathered += 0.0 if job.recipe.trains_adapters else 4.0 * shape.num_head
    # A ring carries all but a process's own part.
    gathered *= (shards - 1) / shards
    summed *= (processes - 1) / processes
    return (gathered + summed) * batch.count / speeds.link_bandwidth
