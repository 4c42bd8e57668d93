"""Estimates the peak memory of one training process by part, in bytes.

The peak is the largest of three moments: when a micro-batch's losses are computed, when its last
decoder layer runs backward, and the optimizer update. Only parts alive at the same moment add up.

Activations are what autograd saves: the residual stream in float32, the inputs of norms and linear
layers, and attention in the compute dtype. The kernels of `layers.fused` save the least.
"""

from collections.abc import Mapping, Sequence

from longred.cost.flops import LAST, Batches, mlp_weights, teacher_length
from longred.cost.shape import ModelShape
from longred.method.job import TrainingJob
from longred.method.layout import PART_BYTES, PARTS_ON_DEVICE

CHUNK_TOKENS = 1024
"""Tokens whose logits exist at once, as in `longred.objectives.cross_entropy`."""

PROCESS_BYTES = {"cpu": 420 * 2**20, "cuda": 0}
"""Memory of a trainer process before it loads a model; on a GPU it is part of the reserve."""

RESERVE_BYTES = 2 * 2**30
RESERVE_SHARE = 0.03
"""GPU memory to leave free: the larger of both.

The CUDA context with its kernels takes about 0.7 GiB, cuBLAS and cuDNN workspaces 0.3 GiB; the rest
covers fragmentation of the allocator.
"""

MULTIPROCESSORS = 132
"""Multiprocessors of a Hopper GPU, which the copies of deterministic FlashAttention depend on."""

MOMENT_BYTES = {"adamw": 8.0, "adamw8bit": 2.0 + 8 / 256}
"""Bytes of optimizer state per trained weight."""


def reserve_bytes(device_bytes: float, *, device: str) -> float:
    """Return the device memory to leave free: a plan fits if plan + reserve <= device."""
    if device != "cuda":
        return 0.0
    return max(float(RESERVE_BYTES), RESERVE_SHARE * device_bytes)


def shards_of(job: TrainingJob) -> int:
    """Return the number of processes that each weight is sharded over."""
    return job.layout.num_processes // job.layout.replicas


def num_trained(shape: ModelShape, job: TrainingJob) -> int:
    """Return the number of trained weights."""
    if job.changes == "adapters":
        return shape.num_adapter(job.lora)
    return shape.num_attention if job.changes == "attention" else shape.num_parameters


def memory_parts(
    shape: ModelShape, job: TrainingJob, work: Sequence[Batches], *, device: str
) -> dict[str, float]:
    """Return the peak memory of one process by part, bytes.

    Args:
        shape: the model's shape.
        job: the training.
        work: its micro-batches.
        device: `cpu` or `cuda`.
    """
    shards, trained = shards_of(job), num_trained(shape, job)
    moments = MOMENT_BYTES[job.optimizer] * trained / shards
    is_on_host = job.optimizer_offload and device == "cuda"
    updates = {"optimizer": _crossing_bytes(shape, job) if is_on_host else 0.0}
    largest = max(
        [updates, *(batch_parts(shape, job, batch) for batch in work)],
        key=lambda parts: sum(parts.values()),
    )
    return {
        "weights": 4.0 * trained / shards,
        "frozen weights": _beside_trained_bytes(shape, job) / shards,
        "gradients": 4.0 * trained / shards,
        "optimizer": 0.0 if is_on_host else moments,
        "teacher": _teacher_bytes(shape, job) / shards,
        "gathered": _gathered_bytes(shape, job) if shards > 1 else 0.0,
        "activations": 0.0,
        "working set": 0.0,
        "states": 0.0,
        "logits": 0.0,
        **largest,
        "process": float(PROCESS_BYTES[device]),
    }


def host_bytes(shape: ModelShape, job: TrainingJob, *, device: str) -> float:
    """Return the optimizer state that one process offloads to host memory, bytes."""
    if device != "cuda" or not job.optimizer_offload:
        return 0.0
    return MOMENT_BYTES[job.optimizer] * num_trained(shape, job) / shards_of(job)


def batch_parts(shape: ModelShape, job: TrainingJob, batch: Batches) -> dict[str, float]:
    """Return the memory of a bucket's largest micro-batch by part, without weights and moments."""
    moments = (losses_parts(shape, job, batch), backward_parts(shape, job, batch))
    return max(moments, key=lambda parts: sum(parts.values()))


def losses_parts(shape: ModelShape, job: TrainingJob, batch: Batches) -> dict[str, float]:
    """Return the memory alive while a micro-batch's losses are computed, by part, bytes."""
    # The last layer's output and the final norm's; unfused, also the normalised values.
    final_norm = 4.0 * (2 if is_fused(job) or job.changes != "all" else 3) * shape.hidden_size
    return {
        "activations": _held_bytes(shape, job, batch) * shape.num_layers
        + final_norm * batch.tokens,
        "states": _states_bytes(shape, job, batch),
        "logits": _logits_bytes(shape, job, batch),
    }


def backward_parts(shape: ModelShape, job: TrainingJob, batch: Batches) -> dict[str, float]:
    """Return the memory alive in the backward pass of the last decoder layer, by part, bytes.

    "working set" is that layer's extra memory: recomputed activations, and gradients inside it.
    """
    tokens, held = batch.tokens, _held_bytes(shape, job, batch)
    inside = min(tokens, job.mlp_tile_tokens or tokens)
    own = layer_bytes(shape, job, tokens) - mlp_bytes(shape, job, tokens - inside)
    gradients = max(inside * _mlp_gradients(shape, job), tokens * _attention_gradients(shape, job))
    if inside < tokens:
        gradients += tokens * dtype_bytes(job) * shape.hidden_size
        if job.changes == "all":
            # Weight gradients are accumulated over tiles, next to those of the current tile.
            gradients += 2 * 4.0 * mlp_weights(shape) / shape.num_layers
    # The gradient of the residual stream, and its cast at the input of a linear layer.
    gradients += tokens * (4.0 + dtype_bytes(job)) * shape.hidden_size
    return {
        "activations": held * shape.num_layers,
        "working set": max(0.0, own - held) + gradients,
        "states": _states_kept_bytes(shape, job, batch),
    }


def layer_bytes(shape: ModelShape, job: TrainingJob, tokens: int) -> float:
    """Return what autograd saves for one decoder layer without MLP tiles, bytes.

    A fused norm saves its input, and its output once for all linear layers that read it. The norms
    of transformers also save the normalised values, and in bfloat16 each linear layer casts its own
    copy of the input. Frozen layers save nothing, except norms their input; each adapter casts its
    layer's input.
    """
    size, width, is_whole = shape.hidden_size, dtype_bytes(job), job.changes == "all"
    norms = 2 * 4.0 * size
    if not is_fused(job) and is_whole:
        norms *= 2
    if job.changes == "adapters":
        inputs = width * _adapted_inputs(shape, job, inside=False)
    elif is_fused(job) or width == 4:
        inputs = (2.0 if is_whole else 1.0) * width * size
    else:
        inputs = width * size * num_readers(shape, inside=is_whole)
    # Queries and keys after RoPE, values, the kernel's output, and one log-sum-exp per head.
    attention = width * 2.0 * (shape.attention_size + shape.key_size) + 4.0 * shape.num_heads
    return tokens * (norms + inputs + attention) + mlp_bytes(shape, job, tokens)


def mlp_bytes(shape: ModelShape, job: TrainingJob, tokens: int) -> float:
    """Return what autograd saves inside an MLP, bytes.

    Gate and up always; without fusion also the activated gate and the product. Fused MLPs recompute
    the product, except that an fp8 last layer saves its input. An adapter of the last layer saves
    its cast input.
    """
    values = (3.0 if job.fp8 else 2.0) if is_fused(job) else 4.0
    if job.changes != "all" and not job.fp8:
        values = 2.0 if is_fused(job) else 3.0
    if job.changes == "adapters":
        values += _adapted_inputs(shape, job, inside=True) / shape.intermediate_size
    return values * dtype_bytes(job) * shape.intermediate_size * tokens


def kept_bytes(shape: ModelShape, job: TrainingJob, tokens: int) -> float:
    """Return what a checkpointed decoder layer saves, bytes: its input, and attention's output."""
    kept = 4.0 * shape.hidden_size
    if job.activation_checkpointing == "selective":
        kept += dtype_bytes(job) * shape.attention_size + 4.0 * shape.num_heads
    return tokens * kept


def is_fused(job: TrainingJob) -> bool:
    """Return whether norms, RoPE and gated MLPs run in `longred.training.layers.fused`."""
    return job.fused and not job.compile


def _held_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Return what every decoder layer saves between forward and backward, bytes."""
    if batch.is_checkpointed:
        return kept_bytes(shape, job, batch.tokens)
    held = layer_bytes(shape, job, batch.tokens)
    if 0 < job.mlp_tile_tokens < batch.tokens:
        held -= mlp_bytes(shape, job, batch.tokens)
    if job.compile and dtype_bytes(job) == 2:
        # Compiled layers save the bfloat16 copies of their weights.
        held += 2.0 * _num_masters(shape, job) / shape.num_layers
    return held


def _num_masters(shape: ModelShape, job: TrainingJob) -> float:
    """Return the trained weights of linear layers, which are float32 and rounded for each use."""
    if job.changes == "adapters":
        return 0.0
    return shape.num_linear - (0.0 if job.changes == "all" else mlp_weights(shape))


def num_readers(shape: ModelShape, *, inside: bool = True) -> float:
    """Return the number of linear layers per decoder layer that read a norm's output.

    Args:
        shape: the model's shape.
        inside: whether to count those of MLPs.
    """
    readers = [
        one
        for name, one in shape.linears.items()
        if name not in ("o_proj", *LAST) and (inside or shape.intermediate_size != one.outputs)
    ]
    return sum(one.count for one in readers) / shape.num_layers


def _adapted_inputs(shape: ModelShape, job: TrainingJob, *, inside: bool) -> float:
    """Return the input features of a layer's adapted linears: the last of MLPs, or the others."""
    names = [name for name in job.lora["targets"] if name in shape.linears]
    adapted = [shape.linears[name] for name in names if (name in LAST) == inside]
    values = sum(one.inputs * one.count for one in adapted)
    return values / shape.num_layers


def _mlp_gradients(shape: ModelShape, job: TrainingJob) -> float:
    """Return the gradients alive at once inside an MLP, bytes per token.

    Fused: gradients of product, gate and up, and the recomputed product. Unfused: two at a time.
    """
    return (4.0 if is_fused(job) else 2.0) * dtype_bytes(job) * shape.intermediate_size


def _attention_gradients(shape: ModelShape, job: TrainingJob) -> float:
    """Return the gradients alive at once around attention, bytes per token: q, k, v and output.

    Deterministic FlashAttention accumulates query gradients in several float32 copies.
    """
    gradients = dtype_bytes(job) * 2.0 * (shape.attention_size + shape.key_size)
    if job.deterministic and dtype_bytes(job) == 2:
        copies = -(-MULTIPROCESSORS // shape.num_heads)
        gradients += 4.0 * copies * shape.attention_size
    return gradients


def _distilled(job: TrainingJob, batch: Batches) -> int:
    """Return how many hidden states a bucket's losses compare."""
    kinds = {term.objective for term in batch.terms}
    kinds -= {"cross_entropy", "attention_distill", "logit_distill"}
    if not kinds:
        return 0
    return len(job.distill_layers) if "hidden_distill" in kinds else 1


def _states_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Teacher states, their distances from the student's, and the temporaries of one distance."""
    shown = teacher_length(job, batch) / batch.length
    state = 4.0 * shape.hidden_size * batch.tokens * shown
    layers = _distilled(job, batch)
    states = state * (2 * layers + 3) if layers else 0.0
    if batch.has_teacher_head and not layers:
        states = state
    return states + _captured_bytes(shape, job, batch)


def _states_kept_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Distances whose backward pass has not run yet."""
    shown = teacher_length(job, batch) / batch.length
    state = 4.0 * shape.hidden_size * batch.tokens * shown
    states = state * max(0, _distilled(job, batch) - 1)
    return states + _captured_bytes(shape, job, batch)


def _captured_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Queries, keys and values captured for relation distillation, of teacher and student.

    Student layers without checkpointing save theirs anyway.
    """
    if not any(term.objective == "attention_distill" for term in batch.terms):
        return 0.0
    models = 2 if batch.is_checkpointed else 1
    values = shape.attention_size + 2 * shape.key_size
    return models * dtype_bytes(job) * values * batch.tokens * shape.num_layers


def _logits_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Gradients of hidden states and output embedding, and one chunk's logits or their product.

    The embedding's gradient is accumulated over chunks; each chunk adds a product of its size. The
    KL of two models' logits holds three tensors of that size; sharded, it gathers a second head.
    """
    if not batch.has_head:
        return 0.0
    rounded = 2.0 if dtype_bytes(job) == 2 else 0.0
    weights = rounded * shape.num_head
    if batch.has_teacher_head:
        is_master = shape.is_tied or job.changes == "adapters"
        copies = shards_of(job) > 1 or (is_master and rounded > 0)
        weights += dtype_bytes(job) * shape.num_head if copies else 0.0
    gradient = 4.0 * shape.num_head if job.changes == "all" else 0.0
    tokens = min(CHUNK_TOKENS, batch.tokens)
    logits = tokens * shape.vocab_size * (12.0 if batch.has_teacher_head else 8.0)
    product = gradient + tokens * shape.vocab_size * max(4.0, rounded) if rounded else 0.0
    hidden = 4.0 * shape.hidden_size * batch.tokens
    return hidden + weights + gradient + max(logits, product)


def _crossing_bytes(shape: ModelShape, job: TrainingJob) -> float:
    """Return the offloaded state that is on the GPU at once; a large weight is one part."""
    own = 4.0 * num_trained(shape, job) / shards_of(job)
    whole = 4.0 * shape.num_head / shards_of(job)
    largest = max(PART_BYTES, whole) if job.changes == "all" else PART_BYTES
    in_flight = min(own, (PARTS_ON_DEVICE - 1) * PART_BYTES + largest)
    return MOMENT_BYTES[job.optimizer] / 4.0 * in_flight


def _beside_trained_bytes(shape: ModelShape, job: TrainingJob) -> float:
    """Return the student's frozen weights: under adapters the whole model."""
    if job.changes == "adapters":
        return _frozen_bytes(shape, job)
    if job.changes == "all":
        return 0.0
    inside = mlp_weights(shape)
    others = shape.num_parameters - shape.num_attention - inside
    return dtype_bytes(job) * inside + 4.0 * others


def _frozen_bytes(shape: ModelShape, job: TrainingJob) -> float:
    """A frozen model: linear layers in the compute dtype, embeddings and norms in float32."""
    if dtype_bytes(job) == 4:
        return 4.0 * shape.num_parameters
    return 2.0 * shape.num_linear + 4.0 * (shape.num_parameters - shape.num_linear)


def _teacher_bytes(shape: ModelShape, job: TrainingJob) -> float:
    """The teacher, without its LM head unless its logits are needed.

    A student with adapters is its own teacher.
    """
    if not job.uses_teacher() or job.recipe.trains_adapters:
        return 0.0
    own_head = 0.0 if shape.is_tied else 1.0 * shape.num_head
    kept = dtype_bytes(job) * own_head if job.compares_logits() else 0.0
    return _frozen_bytes(shape, job) - 4.0 * own_head + kept


def _gathered_bytes(shape: ModelShape, job: TrainingJob) -> float:
    """Return what sharded processes gather at once in the backward pass of a layer, bytes.

    The current and the next layer in the compute dtype, the output embedding in float32, and the
    layer's gradients before and during their reduction (hardly any with adapters).
    """
    layer = shape.num_linear / shape.num_layers
    summed = 2 * 4.0 * _num_masters(shape, job) / shape.num_layers
    return dtype_bytes(job) * 2 * layer + 4.0 * shape.num_head + summed


def dtype_bytes(job: TrainingJob) -> int:
    """Return the size of the compute dtype, bytes."""
    return 2 if job.dtype == "bfloat16" else 4


def disk_bytes(shape: ModelShape, job: TrainingJob) -> Mapping[str, float]:
    """Return the disk space of a training, bytes: its checkpoints and its result.

    `checkpoints` counts all that exist at the same time. The result and every intermediate student
    are whole models in float32.
    """
    trained = num_trained(shape, job)
    one = (4.0 + MOMENT_BYTES[job.optimizer]) * trained
    return {
        "checkpoint": one,
        "checkpoints": one * (job.num_checkpoints + 1),
        "result": 4.0 * shape.num_parameters * (1 + len(job.keep_steps)),
    }
