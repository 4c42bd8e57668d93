"""Memory of one process of a training, by part, in bytes: the largest of its moments.

A micro-batch has two: when its losses are taken, and when its last decoder layer is computed
backward. The update is another. Parts that are not alive together are never added.

Activations are what autograd holds of a decoder: a residual stream in float32, the inputs of norms
and of linear layers, and attention in the compute type. `layers.fused` holds least.
"""

from collections.abc import Mapping, Sequence

from longred.cost.flops import LAST, Batches, mlp_weights, teacher_length
from longred.cost.shape import ModelShape
from longred.method.job import TrainingJob
from longred.method.layout import PART_BYTES, PARTS_ON_DEVICE

CHUNK_TOKENS = 1024
"""Tokens whose logits are held at once, as in `longred.objectives.cross_entropy.long_loss`."""

PROCESS_BYTES = {"cpu": 420 * 2**20, "cuda": 0}
"""What a trainer's process holds before any model. On a GPU that is part of the reserve."""

RESERVE_BYTES = 2 * 2**30
RESERVE_SHARE = 0.03
"""Of a GPU's memory, kept free: the larger of both.

The CUDA context with its kernels takes about 0.7 GiB, workspaces of cuBLAS and cuDNN 0.3, and what
the allocator cannot give out for fragmentation is the rest.
"""

MULTIPROCESSORS = 132
"""Of a Hopper GPU; FlashAttention's deterministic backward pass has a copy for each, by head."""

MOMENT_BYTES = {"adamw": 8.0, "adamw8bit": 2.0 + 8 / 256}
"""Of the optimizer's state, for every trained weight."""


def reserve_bytes(device_bytes: float, *, device: str) -> float:
    """Return what a plan leaves free of a device's memory: `fits` is plan + reserve <= device."""
    if device != "cuda":
        return 0.0
    return max(float(RESERVE_BYTES), RESERVE_SHARE * device_bytes)


def shards_of(job: TrainingJob) -> int:
    """Return over how many processes each weight is divided."""
    return job.layout.num_processes // job.layout.replicas


def num_trained(shape: ModelShape, job: TrainingJob) -> int:
    """Return how many weights are trained."""
    if job.recipe.trains_adapters:
        return shape.num_adapter(job.lora)
    return shape.num_parameters


def memory_parts(
    shape: ModelShape, job: TrainingJob, work: Sequence[Batches], *, device: str
) -> dict[str, float]:
    """Return one process's memory by part at the moment that needs most, bytes.

    Args:
        shape: of the model.
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
    frozen = _frozen_bytes(shape, job) / shards
    return {
        "weights": 4.0 * trained / shards,
        "frozen weights": frozen if job.recipe.trains_adapters else 0.0,
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
    """Return the optimizer's state that one process keeps in host memory, bytes."""
    if device != "cuda" or not job.optimizer_offload:
        return 0.0
    return MOMENT_BYTES[job.optimizer] * num_trained(shape, job) / shards_of(job)


def batch_parts(shape: ModelShape, job: TrainingJob, batch: Batches) -> dict[str, float]:
    """Return what a bucket's largest micro-batch needs beside weights and optimizer, by part."""
    moments = (losses_parts(shape, job, batch), backward_parts(shape, job, batch))
    return max(moments, key=lambda parts: sum(parts.values()))


def losses_parts(shape: ModelShape, job: TrainingJob, batch: Batches) -> dict[str, float]:
    """Return what is alive when a micro-batch's losses are taken, by part, bytes."""
    return {
        "activations": _held_bytes(shape, job, batch) * shape.num_layers
        + _final_norm_bytes(shape, job) * batch.tokens,
        "states": _states_bytes(shape, job, batch),
        "logits": _logits_bytes(shape, job, batch),
    }


def backward_parts(shape: ModelShape, job: TrainingJob, batch: Batches) -> dict[str, float]:
    """Return what is alive in the backward pass of the last decoder layer, by part, bytes.

    What that layer has beside what all layers hold is its working set: its activations where they
    are computed again, and the gradients inside it.
    """
    tokens, held = batch.tokens, _held_bytes(shape, job, batch)
    inside = min(tokens, job.mlp_tile_tokens or tokens)
    own = layer_bytes(shape, job, tokens) - mlp_bytes(shape, job, tokens - inside)
    gradients = max(inside * _mlp_gradients(shape, job), tokens * _attention_gradients(shape, job))
    if inside < tokens:
        gradients += tokens * _width(job) * shape.hidden_size
        if not job.recipe.trains_adapters:
            # Those of the weights are summed over tiles, beside the last tile's.
            gradients += 2 * 4.0 * mlp_weights(shape) / shape.num_layers
    # The gradient of the residual stream, and as it enters a linear layer.
    gradients += tokens * (4.0 + _width(job)) * shape.hidden_size
    return {
        "activations": held * shape.num_layers,
        "working set": max(0.0, own - held) + gradients,
        "states": _states_kept_bytes(shape, job, batch),
    }


def layer_bytes(shape: ModelShape, job: TrainingJob, tokens: int) -> float:
    """Return what autograd holds of one decoder layer without MLP tiles, bytes.

    Fused, a norm holds its input, and its output once for all linear layers that read it. As
    transformers writes them, norms hold the normalised values too, and in bfloat16 every linear
    layer rounds its input for itself. Frozen linear layers hold nothing; adapters each round the
    input of their layer.
    """
    size, width, is_frozen = shape.hidden_size, _width(job), job.recipe.trains_adapters
    norms = 2 * 4.0 * size
    if not is_fused(job) and not is_frozen:
        norms *= 2
    if is_frozen:
        inputs = width * _adapted_inputs(shape, job, inside=False)
    elif is_fused(job) or width == 4:
        inputs = 2.0 * width * size
    else:
        inputs = width * size * num_readers(shape)
    # Queries and keys after RoPE, values, the kernel's output, and a log-sum-exp for every head.
    attention = width * 2.0 * (shape.attention_size + shape.key_size) + 4.0 * shape.num_heads
    return tokens * (norms + inputs + attention) + mlp_bytes(shape, job, tokens)


def mlp_bytes(shape: ModelShape, job: TrainingJob, tokens: int) -> float:
    """Return what autograd holds of the inside of an MLP, bytes.

    Gate and up; and, unless these are fused, the activated gate and the product. The product is
    computed again where they are, but for a last layer in 8-bit floats, which holds its input. An
    adapter of the last layer holds its rounded input.
    """
    values = (3.0 if job.fp8 else 2.0) if is_fused(job) else 4.0
    if job.recipe.trains_adapters:
        values = 2.0 if is_fused(job) else 3.0
        values += _adapted_inputs(shape, job, inside=True) / shape.intermediate_size
    return values * _width(job) * shape.intermediate_size * tokens


def kept_bytes(shape: ModelShape, job: TrainingJob, tokens: int) -> float:
    """Return what is held of a checkpointed decoder layer: its input, and attention's output."""
    kept = 4.0 * shape.hidden_size
    if job.activation_checkpointing == "selective":
        kept += _width(job) * shape.attention_size + 4.0 * shape.num_heads
    return tokens * kept


def is_fused(job: TrainingJob) -> bool:
    """Return whether norms, RoPE and gated MLPs are those of `longred.training.layers.fused`."""
    return job.fused and not job.compile


def _held_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Return what every decoder layer holds between its forward and its backward pass."""
    if batch.is_checkpointed:
        return kept_bytes(shape, job, batch.tokens)
    held = layer_bytes(shape, job, batch.tokens)
    if 0 < job.mlp_tile_tokens < batch.tokens:
        held -= mlp_bytes(shape, job, batch.tokens)
    if job.compile:
        # Compiled layers hold the rounded copies of their weights.
        held += _rounded_bytes(shape, job) / shape.num_layers
    return held


def _rounded_bytes(shape: ModelShape, job: TrainingJob) -> float:
    return 2.0 * shape.num_linear if _width(job) == 2 and not job.recipe.trains_adapters else 0.0


def _final_norm_bytes(shape: ModelShape, job: TrainingJob) -> float:
    """The last layer's output and the norm's, a token; the normalised values too, unless fused."""
    values = 2 if is_fused(job) or job.recipe.trains_adapters else 3
    return 4.0 * values * shape.hidden_size


def num_readers(shape: ModelShape) -> float:
    """Return how many linear layers of a decoder layer read a norm's output."""
    readers = [one for name, one in shape.linears.items() if name not in ("o_proj", *LAST)]
    return sum(one.count for one in readers) / shape.num_layers


def _adapted_inputs(shape: ModelShape, job: TrainingJob, *, inside: bool) -> float:
    """Return the inputs of a layer's adapted linear layers, values a token: inside MLPs or out."""
    names = [name for name in job.lora["targets"] if name in shape.linears]
    adapted = [shape.linears[name] for name in names if (name in LAST) == inside]
    values = sum(one.inputs * one.count for one in adapted)
    return values / shape.num_layers


def _mlp_gradients(shape: ModelShape, job: TrainingJob) -> float:
    """Return the gradients alive at once inside an MLP, bytes a token.

    Fused: of the product, gate and up, and the product again. Otherwise the product's, gate's and
    up's at most, and one more between them, when the product itself is gone.
    """
    return (4.0 if is_fused(job) else 2.0) * _width(job) * shape.intermediate_size


def _attention_gradients(shape: ModelShape, job: TrainingJob) -> float:
    """Return the gradients alive at once around attention, bytes a token: its four tensors'.

    Deterministic, FlashAttention sums the queries' in float32 copies.
    """
    gradients = _width(job) * 2.0 * (shape.attention_size + shape.key_size)
    if job.deterministic and _width(job) == 2:
        copies = -(-MULTIPROCESSORS // shape.num_heads)
        gradients += 4.0 * copies * shape.attention_size
    return gradients


def _distilled(job: TrainingJob, batch: Batches) -> int:
    """Return how many hidden states a bucket's losses compare; 0 where none distils states."""
    kinds = {term.objective for term in batch.terms} - {"cross_entropy", "attention_distill"}
    if not kinds:
        return 0
    return len(job.distill_layers) if "hidden_distill" in kinds else 1


def _states_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """The teacher's states, their distances from the student's, and what one of these takes."""
    shown = teacher_length(job, batch) / batch.length
    state = 4.0 * shape.hidden_size * batch.tokens * shown
    layers = _distilled(job, batch)
    states = state * (2 * layers + 3) if layers else 0.0
    return states + _captured_bytes(shape, job, batch)


def _states_kept_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """The distances of states that the backward pass has not come to yet."""
    shown = teacher_length(job, batch) / batch.length
    state = 4.0 * shape.hidden_size * batch.tokens * shown
    states = state * max(0, _distilled(job, batch) - 1)
    return states + _captured_bytes(shape, job, batch)


def _captured_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """What all layers attend with, where relations are distilled: the teacher's, and the student's.

    Layers that are not checkpointed hold theirs anyway.
    """
    if not any(term.objective == "attention_distill" for term in batch.terms):
        return 0.0
    models = 2 if batch.is_checkpointed else 1
    values = shape.attention_size + 2 * shape.key_size
    return models * _width(job) * values * batch.tokens * shape.num_layers


def _logits_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Gradients of hidden states and output embedding, and a chunk's logits or their product.

    The embedding's gradient is summed over chunks; each adds a product of its size.
    """
    if not batch.has_head:
        return 0.0
    rounded = 2.0 if _width(job) == 2 else 0.0
    weights = rounded * shape.num_head
    gradient = 0.0 if job.recipe.trains_adapters else 4.0 * shape.num_head
    tokens = min(CHUNK_TOKENS, batch.tokens)
    logits = tokens * shape.vocab_size * (4.0 + 2 * max(2.0, rounded))
    product = gradient + tokens * shape.vocab_size * max(4.0, rounded) if rounded else 0.0
    hidden = 4.0 * shape.hidden_size * batch.tokens
    return hidden + weights + gradient + max(logits, product)


def _crossing_bytes(shape: ModelShape, job: TrainingJob) -> float:
    """Return the state on the GPU while parts of it cross; a large weight is a part of its own."""
    own = 4.0 * num_trained(shape, job) / shards_of(job)
    whole = 4.0 * shape.num_head / shards_of(job)
    largest = PART_BYTES if job.recipe.trains_adapters else max(PART_BYTES, whole)
    in_flight = min(own, (PARTS_ON_DEVICE - 1) * PART_BYTES + largest)
    return MOMENT_BYTES[job.optimizer] / 4.0 * in_flight


def _frozen_bytes(shape: ModelShape, job: TrainingJob) -> float:
    """A frozen model: linear layers in the compute type, embeddings and norms in float32."""
    if _width(job) == 4:
        return 4.0 * shape.num_parameters
    return 2.0 * shape.num_linear + 4.0 * (shape.num_parameters - shape.num_linear)


def _teacher_bytes(shape: ModelShape, job: TrainingJob) -> float:
    """The teacher, which is asked for hidden states only: without an output embedding of its own.

    A student with adapters is its own teacher.
    """
    if not job.uses_teacher() or job.recipe.trains_adapters:
        return 0.0
    return _frozen_bytes(shape, job) - (0.0 if shape.is_tied else 4.0 * shape.num_head)


def _gathered_bytes(shape: ModelShape, job: TrainingJob) -> float:
    """Return what sharded processes gather at once in the backward pass of a layer, bytes.

    The layer that is computed and the next in the compute type, the output embedding in float32,
    and the layer's gradients before and while they are summed. With adapters few have gradients.
    """
    layer = shape.num_linear / shape.num_layers
    summed = 0.0 if job.recipe.trains_adapters else 2 * 4.0 * layer
    return _width(job) * 2 * layer + 4.0 * shape.num_head + summed


def _width(job: TrainingJob) -> int:
    return 2 if job.dtype == "bfloat16" else 4


def disk_bytes(shape: ModelShape, job: TrainingJob) -> Mapping[str, float]:
    """Return what a training writes: all checkpoints that exist at once, and its result.

    The result is a whole model in float32, as is every student that is kept beside it.
    """
    trained = num_trained(shape, job)
    one = (4.0 + MOMENT_BYTES[job.optimizer]) * trained
    return {
        "checkpoint": one,
        "checkpoints": one * (job.num_checkpoints + 1),
        "result": 4.0 * shape.num_parameters * (1 + len(job.keep_steps)),
    }
