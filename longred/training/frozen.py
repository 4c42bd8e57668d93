"""Students of which only self-attention is trained: what is frozen, and the whole model again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from longred.models import load as models
from longred.training.adapters import round_linear_layers
from longred.training.optimizer import named_weights


def attention_linears(model: PreTrainedModel) -> Iterator[nn.Linear]:
    """Yield the linear layers inside the self-attention of every decoder layer."""
    base: Any = model.base_model
    for layer in base.layers:
        for module in layer.self_attn.modules():
            if isinstance(module, nn.Linear):
                yield module


def train_attention_alone(model: PreTrainedModel, *, dtype: str) -> None:
    """Freeze everything but the weights and biases of attention's linear layers.

    Frozen linear layers are stored in the compute type, to which autocast would round them on every
    use: the same bits in half the memory.

    Args:
        model: changed in place; its weights may be on the meta device.
        dtype: compute type, `bfloat16` or `float32`.
    """
    model.requires_grad_(False)
    for linear in attention_linears(model):
        linear.requires_grad_(True)
    if dtype == "bfloat16":
        round_linear_layers(model)


def completed(model: PreTrainedModel, student: Path, original: Path) -> PreTrainedModel:
    """Return the student in float32: the trained weights, and the frozen ones as they were.

    Args:
        model: the student; its frozen weights are not read.
        student: folder of the extended model.
        original: folder of the original model.
    """
    whole = models.load_model(student, dtype=torch.float32, original=original)
    weights = dict(whole.named_parameters())
    with torch.no_grad():
        for name, weight in named_weights(model).items():
            weights[name].copy_(weight)
    return whole
