"""Activation checkpointing: which activations are held, and which are recomputed in backward."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

CHECKPOINTING = ("none", "selective", "full")
"""Hold all activations; layers' inputs and attention outputs; layers' inputs alone."""

_TORCH_ATTENTION = frozenset(
    (
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "torch_attn::_varlen_attn",
    )
)


def checkpoint_activations(model: PreTrainedModel, kind: str = "full") -> None:
    """Recompute decoder layers in the backward pass instead of holding their activations.

    `selective` holds the outputs of the attention kernels, which are the most expensive to
    recompute and cheap to hold (2 more bytes per hidden value), so no kernel runs twice. It covers
    the kernels of torch and of FlashAttention 2 and 3; version 4's are no torch operators and run
    twice.

    Args:
        model: changed in place.
        kind: one of `CHECKPOINTING`.
    """
    if kind == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        settings["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    # The second name is that of the first versions of transformers 5.
    new_name = "activation_checkpointing_enable"
    enable: Any = getattr(model, new_name, None) or model.gradient_checkpointing_enable
    enable(settings)


@contextlib.contextmanager
def holding_activations(model: PreTrainedModel) -> Iterator[None]:
    """Run a model's forward passes without activation checkpointing."""
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
    is_held = _is_attention(operator)
    return CheckpointPolicy.MUST_SAVE if is_held else CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def _is_attention(operator: Any) -> bool:
    if not isinstance(operator, torch._ops.OpOverload):
        return False
    namespace, name = operator._schema.name.split("::")
    if namespace.startswith("flash_attn"):
        return "forward" in name or "fwd" in name
    return f"{namespace}::{name}" in _TORCH_ATTENTION
