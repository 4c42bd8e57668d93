"""Decoder layers compiled by torch, each by itself; attention runs as it is written."""

import functools
import importlib.util
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


SHAPES = 64
"""Shapes that one function is compiled for; further ones run as written.

A training has few: rows of a bucket have one length. torch's own limit is 8.
"""


def compiled(forward: Forward) -> Forward:
    """Return a function that torch compiles for each shape, keeping eager mode's roundings."""
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, SHAPES)
    options: dict[str, Any] = {"emulate_precision_casts": True}
    made: Forward = torch.compile(forward, dynamic=False, options=options)
    return made


def has_triton() -> bool:
    """Return whether torch's compiler can write kernels for a GPU."""
    return importlib.util.find_spec("triton") is not None


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where torch's compiler has no compiler to call.

    Raises:
        PreflightError: a C++ compiler (CPU) or Triton (GPU) is missing.
    """
    if device.type == "cuda":
        if not has_triton():
            raise PreflightError("training.compile: needs Triton; install it, or set it to false")
    elif shutil.which("g++") is None and shutil.which("clang++") is None:
        raise PreflightError(
            "training.compile: needs a C++ compiler; install g++, or set it to false"
        )


def _forward(layer: Any, plain: Forward, *args: Any, **kwargs: Any) -> Any:
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(functools.partial(plain, layer, **kwargs), *args)
    return plain(layer, *args, **kwargs)
