"""Finds the settings that make a training fit the memory of a device."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from longred.cost.flops import batches
from longred.cost.memory import memory_parts
from longred.cost.shape import ModelShape
from longred.method.job import TrainingJob
from longred.method.methods import METHODS


class Setting(NamedTuple):
    """A setting that saves memory.

    Attributes:
        setting: `key=value`; several are separated by spaces.
        memory_bytes: peak memory of one process with it.
        is_alone: whether it replaces the settings before it instead of adding to them.
    """

    setting: str
    memory_bytes: float
    is_alone: bool = False


LORA: Mapping[str, Any] = {
    "rank": 16,
    "alpha": 32.0,
    "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
"""Adapters proposed if full training does not fit; equal to the defaults of `training.lora`."""


def advice(
    shape: ModelShape,
    job: TrainingJob,
    lengths: Mapping[str, int],
    *,
    kind: str,
    limit_bytes: float,
) -> Iterator[Setting]:
    """Yield settings, each on top of the previous ones, until the training fits.

    Settings that cost neither time nor exactness come first. If all together are not enough, the
    last one trains adapters instead, with the settings these need, if that fits.

    Args:
        shape: the model's shape.
        job: the training as configured.
        lengths: row length of each bucket, tokens.
        kind: `cpu` or `cuda`.
        limit_bytes: memory of one device without the reserve.
    """
    needed = float("inf")
    for setting in _saving(shape, job, lengths, kind):
        yield setting
        needed = setting.memory_bytes
        if needed <= limit_bytes:
            return
    adapted = _with_adapters(shape, job)
    if adapted is None:
        return
    words = ["training.method=lora", f"training.lora.objectives={job.method}"]
    needed = _peak(shape, adapted, lengths, kind)
    savers = iter(_saving(shape, adapted, lengths, kind))
    while needed > limit_bytes:
        saver = next(savers, None)
        if saver is None:
            return
        words.append(saver.setting)
        needed = saver.memory_bytes
    yield Setting(" ".join(words), needed, is_alone=True)


def _saving(
    shape: ModelShape, job: TrainingJob, lengths: Mapping[str, int], kind: str
) -> Iterator[Setting]:
    """Yield the settings that save memory, each on top of the previous ones."""
    current, before = job, _peak(shape, job, lengths, kind)
    for name, value in _savers(job, lengths, kind):
        values: dict[str, Any] = {name: value}
        changed = dataclasses.replace(current, **values)
        after = _peak(shape, changed, lengths, kind)
        if after > 0.99 * before:
            continue
        current, before = changed, after
        yield Setting(f"training.{name}={value}", after)


def _with_adapters(shape: ModelShape, job: TrainingJob) -> TrainingJob | None:
    """Return the same training with LoRA adapters; None if the method or model cannot use them."""
    method = METHODS[job.method]
    targets = [name for name in LORA["targets"] if name in shape.linears]
    if method.trains_adapters or method.merges or job.fp8 or not targets:
        return None
    lora = {**LORA, "targets": targets, "objectives": job.method}
    return dataclasses.replace(job, method="lora", lora=lora)


def _savers(
    job: TrainingJob, lengths: Mapping[str, int], kind: str
) -> Iterator[tuple[str, object]]:
    if not (job.fused or job.compile):
        yield "fused", True
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
