"""Which settings make a training fit the memory of a device."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from longred.cost.flops import batches
from longred.cost.memory import memory_parts
from longred.cost.shape import ModelShape
from longred.training.job import TrainingJob


def advice(
    shape: ModelShape,
    job: TrainingJob,
    lengths: Mapping[str, int],
    *,
    kind: str,
    limit_bytes: float,
) -> Iterator[tuple[str, float]]:
    """Yield settings, each with those before it, until the training fits; and what it then needs.

    Those come first that cost no time and no exactness.

    Args:
        shape: of the model.
        job: the training as it is set.
        lengths: tokens of a row of each bucket.
        kind: `cpu` or `cuda`.
        limit_bytes: what one device has.
    """
    current = job
    for name, value in _savers(job, lengths, kind):
        values: dict[str, Any] = {name: value}
        changed = dataclasses.replace(current, **values)
        before = _peak(shape, current, lengths, kind)
        after = _peak(shape, changed, lengths, kind)
        if after > 0.99 * before:
            continue
        current = changed
        yield f"training.{name}={value}", after
        if after <= limit_bytes:
            return


def _savers(
    job: TrainingJob, lengths: Mapping[str, int], kind: str
) -> Iterator[tuple[str, object]]:
    longest = max(lengths[bucket] for bucket in job.recipe.buckets())
    if job.activation_checkpointing == "none":
        yield "activation_checkpointing", "selective"
    shorter = max((lengths[b] for b in job.recipe.buckets() if b != "long"), default=0)
    cut = min(job.short_micro_batch_tokens or job.micro_batch_tokens, job.micro_batch_tokens)
    if cut > shorter > 0:
        yield "short_micro_batch_tokens", shorter
    if job.micro_batch_tokens > longest:
        yield "micro_batch_tokens", longest
    if not job.mlp_tile_tokens:
        yield "mlp_tile_tokens", 8192
    if kind == "cuda" and not job.optimizer_offload:
        yield "optimizer_offload", True
    if job.optimizer != "adamw8bit":
        yield "optimizer", "adamw8bit"
    if job.activation_checkpointing != "full":
        yield "activation_checkpointing", "full"
    if job.uncheckpointed_tokens:
        yield "uncheckpointed_tokens", 0


def _peak(shape: ModelShape, job: TrainingJob, lengths: Mapping[str, int], kind: str) -> float:
    return sum(memory_parts(shape, job, batches(job, lengths), device=kind).values())
