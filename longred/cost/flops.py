"""Floating-point operations of one optimizer step, by bucket.

A product of matrices counts two for every multiplication and addition. Attention is counted as it
is causal: a query sees the keys up to its own, of whole rows (document masks would save some).
What the model needs and what checkpointing computes again are kept apart: MFU is of the former.
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
        length: tokens of a row.
        rows: rows of the step, all processes together.
        row_share: processes that share a row's tokens.
        count: micro-batches of the step, of the process that has most.
        tokens: tokens of the largest of them in one process.
        step_tokens: tokens of the step in that process.
        is_checkpointed: whether activations are computed again.
        terms: terms of the loss on them.
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
        """Whether the LM head is run on them."""
        return any(term.objective == "cross_entropy" for term in self.terms)


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations by kernel; sums and multiples are taken by field.

    Attributes:
        linear: products with the decoder layers' weights.
        head: products with the output embedding.
        attention_forward, attention_backward: of the attention kernels.
        relations: of attention distillation's relations.
    """

    linear: float = 0.0
    head: float = 0.0
    attention_forward: float = 0.0
    attention_backward: float = 0.0
    relations: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return float(sum(dataclasses.astuple(self)))

    def __add__(self, other: "Flops") -> "Flops":
        """Return the sum, kernel by kernel."""
        return Flops(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))

    def __mul__(self, factor: float) -> "Flops":
        """Return a multiple, kernel by kernel."""
        return Flops(*(value * factor for value in dataclasses.astuple(self)))


def batches(job: TrainingJob, lengths: Mapping[str, int]) -> list[Batches]:
    """Return the micro-batches of every bucket, as the trainer cuts a step.

    Args:
        job: the training.
        lengths: tokens of a row of each bucket.
    """
    found = []
    layout = job.layout
    for bucket in job.recipe.buckets():
        rows, length = job.rows[bucket], lengths[bucket]
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
    """Return the mean number of keys that a query of a causal row sees."""
    if window is None or window >= length:
        return (length + 1) / 2
    return window - window * (window - 1) / (2 * length)


def forward_flops(shape: ModelShape, length: int, *, head: bool) -> Flops:
    """Return the operations of one token's forward pass in rows of `length` tokens."""
    keys = sum(visible_keys(length, window) for window in shape.windows)
    return Flops(
        linear=2.0 * shape.num_linear,
        head=2.0 * shape.num_head if head else 0.0,
        attention_forward=4.0 * shape.attention_size * keys,
    )


def student_flops(shape: ModelShape, job: TrainingJob, length: int, *, head: bool) -> Flops:
    """Return the operations of one token's forward and backward pass.

    The backward pass takes two products for every one of the forward pass: the gradient of the
    input and of the weight. Under adapters frozen weights have none.
    """
    forward = forward_flops(shape, length, head=head)
    products = 3.0
    adapters = 0.0
    if job.recipe.trains_adapters:
        products = 2.0
        adapters = 6.0 * shape.num_adapter(job.lora)
    return Flops(
        linear=forward.linear * products + adapters,
        head=forward.head * products,
        attention_forward=forward.attention_forward,
        attention_backward=2.0 * forward.attention_forward,
    )


def teacher_length(job: TrainingJob, batch: Batches) -> int:
    """Return how many tokens of each row the teacher is shown; 0 where it is not run."""
    objectives = {term.objective for term in batch.terms}
    if objectives - {"cross_entropy", "long_distill"}:
        return batch.length
    return min(batch.length, job.original_window) if "long_distill" in objectives else 0


def relation_flops(shape: ModelShape, length: int) -> float:
    """Return the operations of one token's Q-Q, K-K and V-V relations, all layers.

    Each needs two products forward, one a model, and four backward: both again, and the gradient
    of both its sides.
    """
    values = shape.attention_size + 2 * shape.key_size
    keys = sum(visible_keys(length, window) for window in shape.windows)
    return 6 * 2.0 * values * keys


def teacher_flops(shape: ModelShape, job: TrainingJob, batch: Batches) -> Flops:
    """Return what the teacher's passes over the bucket take in a step of one process."""
    shown = teacher_length(job, batch)
    if not shown:
        return Flops()
    each = forward_flops(shape, shown, head=False) * (shown / batch.length)
    return each * batch.step_tokens


def needed_flops(shape: ModelShape, job: TrainingJob, batch: Batches) -> Flops:
    """Return what the bucket's losses need in a step of one process, nothing computed twice."""
    each = student_flops(shape, job, batch.length, head=batch.has_head)
    if any(term.objective == "attention_distill" for term in batch.terms):
        each += Flops(relations=relation_flops(shape, batch.length))
    return each * batch.step_tokens + teacher_flops(shape, job, batch)


def recomputed_flops(shape: ModelShape, job: TrainingJob, batch: Batches) -> Flops:
    """Return what checkpointing and MLP tiles compute a second time in a step of one process.

    The last product of a layer or tile is not: no gradient needs it. Compiled layers and those in
    8 bits take it, and so do adapters of that layer, which come after it.
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
"""Names of the last linear layer of an MLP, and so of a decoder layer."""


def last_weights(shape: ModelShape) -> float:
    """Return the weights of the last linear layers of all decoder layers."""
    return float(sum(one.num_weights for name, one in shape.linears.items() if name in LAST))


def mlp_weights(shape: ModelShape) -> float:
    """Return the weights of all MLPs."""
    return float(
        sum(
            one.num_weights
            for one in shape.linears.values()
            if shape.intermediate_size in (one.inputs, one.outputs)
        )
    )


def step_flops(shape: ModelShape, job: TrainingJob, lengths: Mapping[str, int]) -> float:
    """Return what one step needs, all processes together; MFU is counted in these.

    Attention is causal; nothing computed again is counted.
    """
    total = 0.0
    for batch in batches(job, lengths):
        per_token = needed_flops(shape, job, batch).total / batch.step_tokens
        total += per_token * batch.rows * batch.length
    return total
