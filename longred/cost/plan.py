"""What a training takes: seconds, memory, disk, and whether it fits."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longred.cost.advice import advice
from longred.cost.flops import (
    Batches,
    Flops,
    batches,
    needed_flops,
    recomputed_flops,
    step_flops,
    teacher_length,
)
from longred.cost.memory import disk_bytes, host_bytes, memory_parts, num_trained, shards_of
from longred.cost.shape import ModelShape
from longred.cost.speeds import Speeds
from longred.training.job import TrainingJob

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
        advice: what would make it fit: `key=value`, and how much it would then need.
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
    mfu: float
    advice: tuple[tuple[str, float], ...] = ()

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
        """Whether the peak is below what the device has."""
        return self.memory_bytes <= self.limit_bytes

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        values = dataclasses.asdict(self)
        values["memory_bytes"] = self.memory_bytes
        values["tokens_per_second"] = self.tokens_per_second
        values["fits"] = self.fits
        values["advice"] = [
            {"setting": setting, "memory_bytes": size} for setting, size in self.advice
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
        mfu=needed / seconds / processes / speeds.peak_flops,
    )
    if plan.fits:
        return plan
    found = advice(shape, job, lengths, kind=speeds.kind, limit_bytes=speeds.memory_bytes)
    return dataclasses.replace(plan, advice=tuple(found))


def step_seconds(
    shape: ModelShape, job: TrainingJob, work: Sequence[Batches], speeds: Speeds
) -> float:
    """Return the time of one step: products, attention, passes over memory, and the update."""
    total = update_seconds(shape, job, speeds)
    for batch in work:
        flops = needed_flops(shape, job, batch) + recomputed_flops(shape, job, batch)
        compute = flops_seconds(flops, batch.length, speeds)
        compute += elementwise_bytes(shape, job, batch) / speeds.bandwidth
        total += max(compute, _gather_seconds(shape, job, batch, speeds))
    return total


def flops_seconds(flops: Flops, length: int, speeds: Speeds) -> float:
    """Return the time that operations take in products and attention."""
    forward, backward = speeds.attention(length)
    return (
        (flops.linear + flops.relations) / speeds.matmul_flops
        + flops.head / speeds.head_flops
        + flops.attention_forward / forward
        + flops.attention_backward / backward
    )


def elementwise_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Return what a bucket's norms, RoPE, activation functions, sums and losses read and write.

    Counted pass by pass in transformers' decoder; a backward pass reads and writes twice as much.
    Weights are rounded (bfloat16) and their gradients added once a micro-batch.
    """
    width = 2.0 if job.dtype == "bfloat16" else 4.0
    size, heads = shape.hidden_size, shape.attention_size + shape.key_size
    # Two norms of 7 passes and two residual sums of 3, in float32; RoPE 10; the heads laid side
    # by side 2; SiLU and its product 5.
    layer = 4.0 * 20 * size
    layer += width * (10 * heads + 2 * shape.attention_size + 5 * shape.intermediate_size)
    if width == 2:
        # Inputs of q, k, v, gate and up are rounded one by one.
        layer += 5 * 6.0 * size
    token = layer * shape.num_layers
    passes = 3.0 + (1.0 if batch.is_checkpointed else 0.0)
    passes += teacher_length(job, batch) / batch.length
    total = passes * token * batch.step_tokens
    if batch.has_head:
        total += (7 * 4.0 + width) * shape.vocab_size * batch.step_tokens
    for term in batch.terms:
        if term.objective != "cross_entropy":
            states = len(job.distill_layers) if term.objective == "hidden_distill" else 1
            total += states * 4.0 * 24 * size * batch.step_tokens
    per_weight = 12.0 if not job.recipe.trains_adapters else 0.0
    if width == 2 and not job.recipe.trains_adapters:
        per_weight += 6.0 * (3 if batch.is_checkpointed else 2) + 10.0
    return total + per_weight * shape.num_parameters * batch.count


def update_seconds(shape: ModelShape, job: TrainingJob, speeds: Speeds) -> float:
    """Return the time of clipping, the optimizer's step, and its state's way from the host."""
    own = num_trained(shape, job) / shards_of(job)
    seconds = own * (12.0 + 28.0) / speeds.bandwidth
    crossing = 2 * host_bytes(shape, job, device=speeds.kind)
    return seconds + crossing / HOST_BANDWIDTH


HOST_BANDWIDTH = 25e9
"""Bytes a second between host and GPU, one way at a time (PCIe 5)."""


def _gather_seconds(shape: ModelShape, job: TrainingJob, batch: Batches, speeds: Speeds) -> float:
    """Return the time in which sharded weights and gradients travel, beside the computing."""
    if shards_of(job) == 1 or not speeds.link_bandwidth:
        return 0.0
    width = 2.0 if job.dtype == "bfloat16" else 4.0
    crossing = shape.num_parameters * (2 * width + 4.0) * batch.count
    return crossing / speeds.link_bandwidth
