"""Which activations are held for the backward pass, and which are computed again in it."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

CHECKPOINTING = ("none", "selective", "full")
"""Hold everything; hold the layers' inputs and attention outputs; hold the layers' inputs alone."""

_TORCH_ATTENTION = frozenset(
    (
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "torch_attn::_varlen_attn",
    )
)
_FLASH_FORWARD = ("forward", "fwd")


def checkpoint_activations(model: PreTrainedModel, kind: str = "full") -> None:
    """Compute decoder layers again in the backward pass instead of holding their activations.

    `selective` holds the outputs of the attention kernels, which cost most to compute again and
    little to hold: 2 more bytes for every hidden value, and no kernel runs twice. It sees the
    kernels of torch and of FlashAttention 2 and 3; those of version 4, which are no torch
    operators, run again.

    Args:
        model: changed in place.
        kind: one of `CHECKPOINTING`.
    """
    if kind == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        settings["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    enable: Any = getattr(model, "activation_checkpointing_enable", None)
    if enable is None:
        # Its name in the first versions of transformers 5.
        enable = model.gradient_checkpointing_enable
    enable(settings)


@contextlib.contextmanager
def holding_activations(model: PreTrainedModel) -> Iterator[None]:
    """Run a model's forward pass as if its activations were not checkpointed."""
    base: Any = model.base_model
    switched = [layer for layer in base.layers if getattr(layer, "gradient_checkpointing", False)]
    for layer in switched:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in switched:
            layer.gradient_checkpointing = True


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if _is_attention(operator):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def _is_attention(operator: Any) -> bool:
    if not isinstance(operator, torch._ops.OpOverload):
        return False
    namespace, name = operator._schema.name.split("::")
    if namespace.startswith("flash_attn"):
        return any(word in name for word in _FLASH_FORWARD)
    return f"{namespace}::{name}" in _TORCH_ATTENTION
