"""Bytes that a training's memory-bound passes read and write: all that is no product of matrices.

Counted operator by operator, each as it reads its inputs once and writes its outputs once, at the
widths that they have: under autocast the residual stream, norms and RoPE's angles are float32 and
linear layers and attention bfloat16. `training.layers.fused` makes one pass of each function.
"""

from longred.cost.flops import (
    Batches,
    last_weights,
    mlp_weights,
    teacher_length,
    visible_keys,
)
from longred.cost.memory import CHUNK_TOKENS, is_fused, num_readers, shards_of
from longred.cost.shape import ModelShape
from longred.method.job import TrainingJob

STATE_PASSES = 4.0 * 40
"""Bytes for each value of a pair of hidden states whose cosine a loss takes, forward and back."""

RELATION_BYTES = 164.0
"""Bytes for each logit of a relation, both models', forward and back: tiles of float32."""

RELATION_TILE = 512
"""Side of such a tile, as in `longred.objectives.relations`; those on the diagonal are whole."""


def elementwise_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Return what a bucket's norms, RoPE, activations, sums, losses and roundings read and write.

    Of a step of one process. Weights are rounded (bfloat16) and their gradients added once a
    micro-batch, those of tiled MLPs once a tile.
    """
    student_fused = is_fused(job)
    layer = forward_bytes(shape, job, is_fused=student_fused)
    layer += backward_bytes(shape, job, is_fused=student_fused)
    is_tiled = 0 < job.mlp_tile_tokens < batch.tokens
    if batch.is_checkpointed:
        layer += again_bytes(shape, job, is_fused=student_fused)
    elif is_tiled and not student_fused:
        layer += 3 * _width(job) * shape.intermediate_size
    if job.recipe.trains_adapters:
        layer += adapter_bytes(shape, job) * (3 if batch.is_checkpointed else 2)
    shown = teacher_length(job, batch) / batch.length
    layer += shown * forward_bytes(shape, job, is_fused=job.fused)
    token = layer * shape.num_layers
    # The embeddings' rows, and the final norm.
    token += 36.0 * shape.hidden_size
    token += _loss_bytes(shape, job, batch)
    return token * batch.step_tokens + _weight_bytes(shape, job, batch) * batch.count


def forward_bytes(shape: ModelShape, job: TrainingJob, *, is_fused: bool) -> float:
    """Return the bytes of one token's forward pass through one decoder layer."""
    size, inside, width = shape.hidden_size, shape.intermediate_size, _width(job)
    heads = shape.attention_size + shape.key_size
    residual = 2 * (8.0 + width) * size
    if is_fused:
        # Each of both norms, RoPE and the gated activation reads and writes once.
        return residual + 2 * (4 + width) * size + 2 * width * heads + 3 * width * inside
    # A norm is 7 passes of float32. RoPE multiplies twice, turns, adds, and rounds at the end.
    norms, rounded = 2 * 7 * 4.0 * size, 0.0
    rope = (36.0 if width == 2 else 40.0) * heads
    if width == 2:
        rounded = 6.0 * size * num_readers(shape)
    return residual + norms + rounded + rope + 5 * width * inside


def backward_bytes(shape: ModelShape, job: TrainingJob, *, is_fused: bool) -> float:
    """Return the bytes of one token's backward pass through one decoder layer."""
    size, inside, width = shape.hidden_size, shape.intermediate_size, _width(job)
    heads, readers = shape.attention_size + shape.key_size, num_readers(shape)
    # The residual stream's gradient is added to twice, and rounded for both last linear layers.
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
    """Return the bytes of one token's forward pass where a layer is computed again.

    It ends before the last residual sum, and fused before the gated activation.
    """
    again = forward_bytes(shape, job, is_fused=is_fused)
    again -= (8.0 + _width(job)) * shape.hidden_size
    return again - (3 * _width(job) * shape.intermediate_size if is_fused else 0.0)


def adapter_bytes(shape: ModelShape, job: TrainingJob) -> float:
    """Return the bytes around one token's adapters in one layer, in one pass.

    Their inputs become float32 and are rounded again; their outputs are scaled and added.
    """
    found = [one for name, one in shape.linears.items() if name in job.lora["targets"]]
    width = _width(job)
    inputs = sum(one.inputs * one.count for one in found) / shape.num_layers
    outputs = sum(one.outputs * one.count for one in found) / shape.num_layers
    return (12.0 if width == 2 else 0.0) * inputs + 5.0 * width * outputs


def _loss_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Return the bytes of one token's losses."""
    total = 0.0
    if batch.has_head:
        # log-softmax, its exponential in place, and the rounding for the products.
        logits = 6.0 + 8.0 + 6.0 if _width(job) == 2 else 16.0
        total += logits * shape.vocab_size + 40.0 * shape.hidden_size
    shown = teacher_length(job, batch) / batch.length
    for term in batch.terms:
        if term.objective not in ("cross_entropy", "attention_distill"):
            states = len(job.distill_layers) if term.objective == "hidden_distill" else 1
            total += states * STATE_PASSES * shape.hidden_size * shown
        elif term.objective == "attention_distill":
            keys = sum(visible_keys(batch.length, window) for window in shape.windows)
            keys += shape.num_layers * RELATION_TILE / 2
            total += RELATION_BYTES * (shape.num_heads + 2 * shape.num_key_heads) * keys
    return total


def _weight_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Return the bytes of one micro-batch that weights and their gradients take."""
    if job.recipe.trains_adapters:
        return 0.0
    tiles = 1.0
    if 0 < job.mlp_tile_tokens < batch.tokens:
        tiles = -(-batch.tokens // job.mlp_tile_tokens)
    mlp = mlp_weights(shape)
    is_again = batch.is_checkpointed or tiles > 1
    # Gradients are added to those that are there, and over tiles.
    reached = float(shape.num_parameters)
    if not (batch.has_head or shape.is_tied):
        reached -= shape.num_head
    total = 12.0 * reached + 12.0 * mlp * (tiles - 1)
    if _width(job) == 2:
        rounded = (shape.num_linear - mlp) * (3 if batch.is_checkpointed else 2)
        rounded += tiles * (mlp * (3 if is_again else 2))
        rounded -= tiles * last_weights(shape) if is_again else 0.0
        # Sharded weights are rounded before they are gathered.
        total += 6.0 * rounded / (1 if shards_of(job) == 1 else shards_of(job) * tiles)
    # The input embedding's gradient is written whole; the output's is summed over chunks.
    total += 4.0 * shape.num_head
    if batch.has_head:
        chunks = -(-batch.tokens // CHUNK_TOKENS)
        # In float32 each chunk's product is added by its kernel.
        total += shape.num_head * (12.0 + (12.0 * chunks + 6.0 if _width(job) == 2 else 0.0))
    return total


def _width(job: TrainingJob) -> int:
    return 2 if job.dtype == "bfloat16" else 4
