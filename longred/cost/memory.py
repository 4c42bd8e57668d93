"""Memory of one process of a training, by part, in bytes.

Activations are what autograd holds of transformers' decoders: a residual stream, norms and their
outputs in float32, the inputs of linear layers and attention in the compute type.
"""

from collections.abc import Mapping, Sequence

from longred.cost.flops import Batches, teacher_length
from longred.cost.shape import ModelShape
from longred.training.host_state import PART_BYTES
from longred.training.job import TrainingJob

CHUNK_TOKENS = 1024
"""Tokens whose logits are held at once, as in `longred.objectives.long_loss`."""

PROCESS_BYTES = {"cpu": 420 * 2**20, "cuda": 700 * 2**20}
"""What a trainer holds before any model: torch and transformers, or a CUDA context."""

MOMENT_BYTES = {"adamw": 8.0, "adamw8bit": 2.0 + 8 / 256}
"""Of the optimizer's state, for every trained weight."""


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
    """Return the peak of one process's memory by part, bytes.

    Args:
        shape: of the model.
        job: the training.
        work: its micro-batches.
        device: `cpu` or `cuda`.
    """
    shards, trained = shards_of(job), num_trained(shape, job)
    is_on_host = job.optimizer_offload and device == "cuda"
    moments = MOMENT_BYTES[job.optimizer] * trained / shards
    peaks = [batch_parts(shape, job, batch) for batch in work]
    largest = max(peaks, key=lambda parts: sum(parts.values()))
    frozen = _frozen_bytes(shape, job) / shards
    parts = {
        "weights": 4.0 * trained / shards,
        "frozen weights": frozen if job.recipe.trains_adapters else 0.0,
        "gradients": 4.0 * trained / shards,
        "optimizer": min(moments, 2 * PART_BYTES) if is_on_host else moments,
        "teacher": _teacher_bytes(shape, job) / shards,
        "gathered": _gathered_bytes(shape, job) if shards > 1 else 0.0,
        **largest,
        "process": float(PROCESS_BYTES[device]),
    }
    return parts


def host_bytes(shape: ModelShape, job: TrainingJob, *, device: str) -> float:
    """Return the optimizer's state that one process keeps in host memory, bytes."""
    if device != "cuda" or not job.optimizer_offload:
        return 0.0
    return MOMENT_BYTES[job.optimizer] * num_trained(shape, job) / shards_of(job)


def batch_parts(shape: ModelShape, job: TrainingJob, batch: Batches) -> dict[str, float]:
    """Return what a bucket's largest micro-batch needs beside weights and optimizer, by part."""
    whole = layer_bytes(shape, job, batch.tokens)
    held = whole
    if batch.is_checkpointed:
        held = kept_bytes(shape, job, batch.tokens)
    if 0 < job.mlp_tile_tokens < batch.tokens:
        whole -= mlp_bytes(shape, job, batch.tokens - job.mlp_tile_tokens)
        held = min(held, whole)
    return {
        # The final norm holds its input and output.
        "activations": held * shape.num_layers + 8.0 * shape.hidden_size * batch.tokens,
        # One layer's activations computed again, and about as much of their gradients.
        "working set": whole * (1.0 if batch.is_checkpointed else 0.0) + 0.5 * whole,
        "states": _states_bytes(shape, job, batch),
        "logits": _logits_bytes(shape, job, batch),
    }


def layer_bytes(shape: ModelShape, job: TrainingJob, tokens: int) -> float:
    """Return what autograd holds of one decoder layer, bytes."""
    size, width = shape.hidden_size, _width(job)
    norms = 2 * 2 * 4.0 * size
    # In bfloat16 every linear layer rounds its input for itself; in float32 they share it.
    inputs = 5 * 2.0 * size if width == 2 else 2 * 4.0 * size
    attention = width * 2.0 * (shape.attention_size + shape.key_size)
    return tokens * (norms + inputs + attention) + mlp_bytes(shape, job, tokens)


def mlp_bytes(shape: ModelShape, job: TrainingJob, tokens: int) -> float:
    """Return what autograd holds of the inside of an MLP: four values as wide as it, bytes."""
    return 4.0 * _width(job) * shape.intermediate_size * tokens


def kept_bytes(shape: ModelShape, job: TrainingJob, tokens: int) -> float:
    """Return what is held of a checkpointed decoder layer: its input, and attention's output."""
    kept = 4.0 * shape.hidden_size
    if job.activation_checkpointing == "selective":
        kept += _width(job) * shape.attention_size + 4.0 * shape.num_heads
    return tokens * kept


def _states_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Both models' hidden states that a loss compares, and the copies that it makes of one pair."""
    distils = [term for term in batch.terms if term.objective != "cross_entropy"]
    if not distils:
        return 0.0
    layers = max(
        len(job.distill_layers) if term.objective == "hidden_distill" else 1 for term in distils
    )
    shown = teacher_length(job, batch) / batch.length
    state = 4.0 * shape.hidden_size * batch.tokens
    return state * (layers * shown + 4)


def _logits_bytes(shape: ModelShape, job: TrainingJob, batch: Batches) -> float:
    """Logits and log-probabilities of a chunk, and the output embedding's gradient.

    That is summed over chunks, and scaled into a copy when the logits are gone.
    """
    if not batch.has_head:
        return 0.0
    rounded = 2.0 if _width(job) == 2 else 0.0
    chunk = min(CHUNK_TOKENS, batch.tokens) * shape.vocab_size * (8.0 + rounded)
    gradient = 0.0 if job.recipe.trains_adapters else 4.0 * shape.num_head
    return gradient + max(gradient, chunk + rounded * shape.num_head)


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
    """Weights of two layers, and of the embeddings, that sharded processes gather; one gradient."""
    layer = shape.num_linear / shape.num_layers
    embeddings = shape.num_head * (1 if shape.is_tied else 2)
    return _width(job) * (2 * layer + embeddings) + 4.0 * max(layer, shape.num_head)


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
