"""Counts the floating-point operations of one optimizer step, by bucket.

A multiply-add counts as two. Attention is counted as causal over whole rows (document masks would
save some). Needed operations and recomputation are separate; MFU uses needed operations only.
"""

import dataclasses
import operator
from collections.abc import Mapping
from dataclasses import dataclass

from longred.cost.shape import ModelShape
from longred.method.job import TrainingJob
from longred.method.methods import Term


@dataclass(frozen=True, slots=True)
class Batches:
    """The micro-batches of one bucket in one step of one process.

    Attributes:
        bucket: the bucket.
        length: tokens per row.
        rows: rows per step over all processes.
        row_share: number of processes that share the tokens of a row.
        count: micro-batches per step in the process with the most.
        tokens: tokens of its largest micro-batch.
        step_tokens: tokens per step in that process.
        is_checkpointed: whether activations are recomputed.
        terms: loss terms computed on this bucket.
    """

    bucket: str
    length: int
    rows: int
    row_share: int
    count: int
    tokens: int
    step_tokens: int
    is_checkpointed: bool
    terms: tuple[Term, ...]

    @property
    def has_head(self) -> bool:
        """Whether a loss term needs the LM head."""
        return any(term.objective in ("cross_entropy", "logit_distill") for term in self.terms)

    @property
    def has_teacher_head(self) -> bool:
        """Whether a loss term needs the teacher's LM head."""
        return any(term.objective == "logit_distill" for term in self.terms)


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations by kind of kernel; supports + and *, field by field.

    Attributes:
        linear: products with the decoder layers' weights.
        head: products with the output embedding.
        attention_forward, attention_backward: attention kernels.
        relations: Q-Q, K-K and V-V relations of attention distillation.
    """

    linear: float = 0.0
    head: float = 0.0
    attention_forward: float = 0.0
    attention_backward: float = 0.0
    relations: float = 0.0

    @property
    def total(self) -> float:
        """Sum over all kinds."""
        return float(sum(dataclasses.astuple(self)))

    def __add__(self, other: "Flops") -> "Flops":
        """Add field by field."""
        return Flops(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))

    def __mul__(self, factor: float) -> "Flops":
        """Multiply every field."""
        return Flops(*(value * factor for value in dataclasses.astuple(self)))


def batches(job: TrainingJob, lengths: Mapping[str, int]) -> list[Batches]:
    """Return the micro-batches of every bucket, split as the trainer splits a step.

    Args:
        job: the training.
        lengths: row length of each bucket, tokens.
    """
    found = []
    layout = job.layout
    for bucket in job.recipe.buckets():
        rows, length = job.seen_rows(bucket, lengths[bucket])
        share = layout.sequence_parallel if bucket == "long" else 1
        own = -(-rows // layout.readers(bucket))
        most = job.micro_batch_tokens
        if bucket != "long":
            most = min(most, job.short_micro_batch_tokens or most)
        count = -(-own // max(1, most // length))
        largest = -(-own // count) * length
        recomputes = job.activation_checkpointing != "none"
        found.append(
            Batches(
                bucket=bucket,
                length=length,
                rows=rows,
                row_share=share,
                count=count,
                tokens=largest // share,
                step_tokens=own * length // share,
                is_checkpointed=recomputes and largest > job.uncheckpointed_tokens,
                terms=tuple(term for term in job.terms if term.bucket == bucket),
            )
        )
    return found


def visible_keys(length: int, window: int | None) -> float:
    """Return the mean number of keys that a query attends to in a causal row."""
    if window is None or window >= length:
        return (length + 1) / 2
    return window - window * (window - 1) / (2 * length)


def forward_flops(shape: ModelShape, length: int, *, head: bool) -> Flops:
    """Return the operations per token of a forward pass over rows of `length` tokens."""
    keys = sum(visible_keys(length, window) for window in shape.windows)
    return Flops(
        linear=2.0 * shape.num_linear,
        head=2.0 * shape.num_head if head else 0.0,
        attention_forward=4.0 * shape.attention_size * keys,
    )


def student_flops(shape: ModelShape, job: TrainingJob, length: int, *, head: bool) -> Flops:
    """Return the operations per token of a forward and backward pass.

    Backward has two products per forward product, for the input and the weight gradient. Frozen
    weights have no weight gradient.
    """
    forward = forward_flops(shape, length, head=head)
    products = 3.0 if job.changes == "all" else 2.0
    trained = 0.0
    if job.changes == "adapters":
        trained = 6.0 * shape.num_adapter(job.lora)
    elif job.changes == "attention":
        trained = 2.0 * (shape.num_linear - mlp_weights(shape))
    return Flops(
        linear=forward.linear * products + trained,
        head=forward.head * products,
        attention_forward=forward.attention_forward,
        attention_backward=2.0 * forward.attention_forward,
    )


def teacher_length(job: TrainingJob, batch: Batches) -> int:
    """Return how many tokens of each row the teacher reads; 0 if it does not run."""
    objectives = {term.objective for term in batch.terms}
    if objectives - {"cross_entropy", "long_distill"}:
        return batch.length
    return min(batch.length, job.original_window) if "long_distill" in objectives else 0


def relation_flops(shape: ModelShape, length: int) -> float:
    """Return the operations per token of the Q-Q, K-K and V-V relations of all layers.

    Each relation needs two forward products, one per model, and four backward: both recomputed,
    and the gradients of both operands.
    """
    values = shape.attention_size + 2 * shape.key_size
    keys = sum(visible_keys(length, window) for window in shape.windows)
    return 6 * 2.0 * values * keys


def teacher_flops(shape: ModelShape, job: TrainingJob, batch: Batches) -> Flops:
    """Return the teacher's operations on a bucket, per step and process."""
    shown = teacher_length(job, batch)
    if not shown:
        return Flops()
    each = forward_flops(shape, shown, head=batch.has_teacher_head) * (shown / batch.length)
    return each * batch.step_tokens


def needed_flops(shape: ModelShape, job: TrainingJob, batch: Batches) -> Flops:
    """Return the operations that a bucket's losses need, per step and process."""
    each = student_flops(shape, job, batch.length, head=batch.has_head)
    if any(term.objective == "attention_distill" for term in batch.terms):
        each += Flops(relations=relation_flops(shape, batch.length))
    return each * batch.step_tokens + teacher_flops(shape, job, batch)


def recomputed_flops(shape: ModelShape, job: TrainingJob, batch: Batches) -> Flops:
    """Return the operations that checkpointing and MLP tiles recompute, per step and process.

    The last product of a layer or tile is skipped because no gradient needs it, except in compiled
    layers, fp8 layers, and layers whose last linear has adapters.
    """
    is_spared = not (job.compile or job.fp8)
    if job.recipe.trains_adapters:
        is_spared = not LAST & set(job.lora["targets"])
    last = 2.0 * last_weights(shape) if is_spared else 0.0
    if not batch.is_checkpointed:
        if not 0 < job.mlp_tile_tokens < batch.tokens:
            return Flops()
        return Flops(linear=2.0 * mlp_weights(shape) - last) * batch.step_tokens
    forward = forward_flops(shape, batch.length, head=False)
    adapters = 2.0 * shape.num_adapter(job.lora) if job.recipe.trains_adapters else 0.0
    linear = forward.linear + adapters - last
    if job.activation_checkpointing == "selective":
        return Flops(linear=linear) * batch.step_tokens
    return dataclasses.replace(forward, linear=linear) * batch.step_tokens


LAST = frozenset({"down_proj"})
"""Names of the last linear layer of an MLP, which is also the last of a decoder layer."""


def last_weights(shape: ModelShape) -> float:
    """Return the number of weights in the last linear layers of all decoder layers."""
    return float(sum(one.num_weights for name, one in shape.linears.items() if name in LAST))


def mlp_weights(shape: ModelShape) -> float:
    """Return the number of weights in all MLPs."""
    return float(
        sum(
            one.num_weights
            for one in shape.linears.values()
            if shape.intermediate_size in (one.inputs, one.outputs)
        )
    )


def step_flops(shape: ModelShape, job: TrainingJob, lengths: Mapping[str, int]) -> float:
    """Return the needed operations of one step over all processes, the numerator of MFU.

    Attention counts as causal; recomputation is excluded.
    """
    total = 0.0
    for batch in batches(job, lengths):
        per_token = needed_flops(shape, job, batch).total / batch.step_tokens
        total += per_token * batch.rows * batch.length
    return total
