"""Decoder layers compiled by torch, each by itself; attention runs as it is written."""

import functools
import shutil
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from longred.errors import PreflightError

Forward = Callable[..., Any]


def compile_layers(model: PreTrainedModel) -> None:
    """Compile what decoder layers do before and after attention, once for all layers.

    Roundings that fused kernels would leave out are kept, so that the results are those of other
    layers but for a value rounded to its other neighbour now and then. The attention function is
    called in between, with any positions, documents and captures, and its outputs can be held by
    checkpointing, which goes around the compiled parts. Unlike `longred.masters`, compiled layers
    that are not checkpointed hold the bfloat16 copies of their weights until their backward pass.

    Args:
        model: changed in place, after its layers were given adapters or other linear layers.
    """
    base: Any = model.base_model
    for layer in base.layers:
        # transformers wraps a layer's forward in checkpointing, inside which nothing is compiled.
        forward = type(layer).forward
        plain = compiled(getattr(forward, "__wrapped__", forward))
        layer.forward = functools.partial(_forward, layer, plain)


def compiled(forward: Forward) -> Forward:
    """Return a function that torch compiles when it is called, keeping eager mode's roundings."""
    options: dict[str, Any] = {"emulate_precision_casts": True}
    made: Forward = torch.compile(forward, options=options)
    return made


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where torch's compiler has no compiler to call.

    Raises:
        PreflightError: a C++ compiler (CPU) or Triton (GPU) is missing.
    """
    if device.type == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError as error:
            raise PreflightError(
                f"training.compile: needs Triton ({error}); install it, or set it to false"
            ) from error
    elif shutil.which("g++") is None and shutil.which("clang++") is None:
        raise PreflightError(
            "training.compile: needs a C++ compiler; install g++, or set it to false"
        )


def _forward(layer: Any, plain: Forward, *args: Any, **kwargs: Any) -> Any:
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(functools.partial(plain, layer, **kwargs), *args)
    return plain(layer, *args, **kwargs)
