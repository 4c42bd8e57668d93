"""Counts the bytes moved by memory-bound operators: everything except matrix products.

Each operator reads its inputs once and writes its outputs once, at their actual widths: under
autocast the residual stream, norms and RoPE angles are float32, linear layers and attention
bfloat16. Each function of `training.layers.fused` is a single pass.
"""

from longred.cost.flops import (
    Batches,
    last_weights,
    mlp_weights,
    teacher_length,
    visible_keys,
)
from longred.cost.memory import CHUNK_TOKENS, dtype_bytes, is_fused, num_readers, shards_of
from longred.cost.shape import ModelShape
from longred.method.job import TrainingJob

STATE_PASSES = 4.0 * 40
"""Bytes per element of a pair of hidden states for the cosine loss, forward and backward."""

RELATION_BYTES = 164.0
"""Bytes per relation logit, both models, forward and backward, in float32 tiles."""

RELATION_TILE = 512
"""Side of a tile, as in `longred.objectives.relations`; those on the diagonal are full."""


def elementwise_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Return the bytes of a bucket's norms, RoPE, activations, sums, losses and casts.

    Per step and process. Weights are cast and their gradients accumulated once per micro-batch, in
    tiled MLPs once per tile.
    """
    student_fused = is_fused(job)
    layer = forward_bytes(shape, job, is_fused=student_fused)
    layer += backward_bytes(shape, job, is_fused=student_fused)
    is_tiled = 0 < job.mlp_tile_tokens < batch.tokens
    if batch.is_checkpointed:
        layer += again_bytes(shape, job, is_fused=student_fused)
    elif is_tiled and not student_fused:
        layer += 3 * dtype_bytes(job) * shape.intermediate_size
    if job.recipe.trains_adapters:
        layer += adapter_bytes(shape, job) * (3 if batch.is_checkpointed else 2)
    shown = teacher_length(job, batch) / batch.length
    layer += shown * forward_bytes(shape, job, is_fused=job.fused)
    token = layer * shape.num_layers
    # Embedding rows and the final norm.
    token += 36.0 * shape.hidden_size
    token += _loss_bytes(shape, job, batch)
    return token * batch.step_tokens + _weight_bytes(shape, job, batch) * batch.count


def forward_bytes(shape: ModelShape, job: TrainingJob, *, is_fused: bool) -> float:
    """Return the bytes per token of a forward pass through one decoder layer."""
    size, inside, width = shape.hidden_size, shape.intermediate_size, dtype_bytes(job)
    heads = shape.attention_size + shape.key_size
    residual = 2 * (8.0 + width) * size
    if is_fused:
        # Both norms, RoPE and the gated activation each read and write once.
        return residual + 2 * (4 + width) * size + 2 * width * heads + 3 * width * inside
    # A norm is 7 float32 passes. RoPE multiplies twice, rotates, adds, and casts at the end.
    norms, rounded = 2 * 7 * 4.0 * size, 0.0
    rope = (36.0 if width == 2 else 40.0) * heads
    if width == 2:
        rounded = 6.0 * size * num_readers(shape)
    return residual + norms + rounded + rope + 5 * width * inside


def backward_bytes(shape: ModelShape, job: TrainingJob, *, is_fused: bool) -> float:
    """Return the bytes per token of a backward pass through one decoder layer."""
    size, inside, width = shape.hidden_size, shape.intermediate_size, dtype_bytes(job)
    heads, readers = shape.attention_size + shape.key_size, num_readers(shape)
    # The residual stream's gradient is added to twice, and cast for o_proj and down_proj.
    residual = 24.0 * size + (2 * 6.0 * size if width == 2 else 0.0)
    if is_fused:
        sums = (readers - 2) * 3.0 * width * size
        norms = 2.0 * (8 + width) * size
        return residual + sums + norms + 2 * width * heads + 6 * width * inside
    sums = (readers - 2) * 12.0 * size + (6.0 * size * readers if width == 2 else 0.0)
    norms = 2 * 23 * 4.0 * size
    rope = (58.0 if width == 2 else 46.0) * heads
    return residual + sums + norms + rope + 9 * width * inside


def again_bytes(shape: ModelShape, job: TrainingJob, *, is_fused: bool) -> float:
    """Return the bytes per token of recomputing a layer's forward pass.

    Recomputation stops before the last residual sum, fused also before the gated activation.
    """
    again = forward_bytes(shape, job, is_fused=is_fused)
    again -= (8.0 + dtype_bytes(job)) * shape.hidden_size
    return again - (3 * dtype_bytes(job) * shape.intermediate_size if is_fused else 0.0)


def adapter_bytes(shape: ModelShape, job: TrainingJob) -> float:
    """Return the bytes per token of one layer's adapters, per pass.

    Inputs are cast to float32 and back; outputs are scaled and added.
    """
    found = [one for name, one in shape.linears.items() if name in job.lora["targets"]]
    width = dtype_bytes(job)
    inputs = sum(one.inputs * one.count for one in found) / shape.num_layers
    outputs = sum(one.outputs * one.count for one in found) / shape.num_layers
    return (12.0 if width == 2 else 0.0) * inputs + 5.0 * width * outputs


def _loss_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Return the bytes per token of the losses."""
    total = 0.0
    width = dtype_bytes(job)
    if batch.has_head:
        # log-softmax, its exponential in place, and the cast for the products.
        logits = 6.0 + 8.0 + 6.0 if width == 2 else 16.0
        if batch.has_teacher_head:
            # Two log-softmaxes, two exponentials, four sums and products, a sum, and the cast.
            logits = 2 * (4.0 + width) + 2 * 8.0 + 4 * 12.0 + 4.0 + (6.0 if width == 2 else 0.0)
        total += logits * shape.vocab_size + 40.0 * shape.hidden_size
    shown = teacher_length(job, batch) / batch.length
    for term in batch.terms:
        if term.objective not in ("cross_entropy", "attention_distill", "logit_distill"):
            states = len(job.distill_layers) if term.objective == "hidden_distill" else 1
            total += states * STATE_PASSES * shape.hidden_size * shown
        elif term.objective == "attention_distill":
            keys = sum(visible_keys(batch.length, window) for window in shape.windows)
            keys += shape.num_layers * RELATION_TILE / 2
            total += RELATION_BYTES * (shape.num_heads + 2 * shape.num_key_heads) * keys
    return total


def _weight_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Return the bytes per micro-batch of casting weights and accumulating their gradients."""
    if job.changes == "adapters":
        return 0.0
    if job.changes == "attention":
        masters = shape.num_linear - mlp_weights(shape)
        casts = 6.0 * masters * (3 if batch.is_checkpointed else 2) / shards_of(job)
        return 12.0 * shape.num_attention + (casts if dtype_bytes(job) == 2 else 0.0)
    tiles = 1.0
    if 0 < job.mlp_tile_tokens < batch.tokens:
        tiles = -(-batch.tokens // job.mlp_tile_tokens)
    mlp = mlp_weights(shape)
    is_again = batch.is_checkpointed or tiles > 1
    # Gradients are accumulated over micro-batches and tiles.
    reached = float(shape.num_parameters)
    if not (batch.has_head or shape.is_tied):
        reached -= shape.num_head
    total = 12.0 * reached + 12.0 * mlp * (tiles - 1)
    if dtype_bytes(job) == 2:
        rounded = (shape.num_linear - mlp) * (3 if batch.is_checkpointed else 2)
        rounded += tiles * (mlp * (3 if is_again else 2))
        rounded -= tiles * last_weights(shape) if is_again else 0.0
        # Sharded weights are cast before they are gathered.
        total += 6.0 * rounded / (1 if shards_of(job) == 1 else shards_of(job) * tiles)
    # The input embedding's gradient is dense; the output's is accumulated over chunks.
    total += 4.0 * shape.num_head
    if batch.has_head:
        chunks = -(-batch.tokens // CHUNK_TOKENS)
        # In float32 the kernel of each chunk's product accumulates itself.
        total += shape.num_head * (12.0 + (12.0 * chunks + 6.0 if dtype_bytes(job) == 2 else 0.0))
    return total
