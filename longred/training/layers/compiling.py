"""Decoder layers compiled by torch, each by itself; attention runs as it is written."""

import functools
import importlib.util
import inspect
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
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
    checkpointing, which goes around the compiled parts. Unlike `masters`, compiled layers
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
    settings: dict[str, Any] = {
        "dynamic": False,
        "options": {"emulate_precision_casts": True},
    }
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        # Where torch takes a limit here, its configuration is each thread's own, and backward
        # passes of a GPU run in another thread.
        settings["recompile_limit"] = SHAPES
    else:
        dynamo: Any = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, SHAPES)
    made: Forward = torch.compile(forward, **settings)
    return made


def compiler_problem(device: str) -> str | None:
    """Return what torch's compiler lacks to make kernels for `cpu` or `cuda`, or None."""
    if device != "cuda":
        has_compiler = shutil.which("g++") or shutil.which("clang++")
        return None if has_compiler else "needs a C++ compiler; install g++"
    if importlib.util.find_spec("triton") is None:
        return "needs Triton; install it"
    # Triton builds the piece that starts its kernels.
    if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang")))):
        return "needs a C compiler for Triton; install gcc"
    # Where Triton looks: Debian's own scheme names a folder without headers.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    if not (Path(sysconfig.get_path("include", scheme)) / "Python.h").is_file():
        return "needs Python's headers for Triton; install python3-dev"
    return None


def check_compiler(device: torch.device, setting: str) -> None:
    """Refuse to compile where torch's compiler has no compiler to call.

    Args:
        device: whose kernels are wanted.
        setting: the dotted key that asks for them.

    Raises:
        PreflightError: a C++ compiler (CPU), Triton or what that needs (GPU) is missing.
    """
    problem = compiler_problem(device.type)
    if problem:
        raise PreflightError(f"{setting}: {problem}, or set it to false")


def _forward(layer: Any, plain: Forward, *args: Any, **kwargs: Any) -> Any:
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(functools.partial(plain, layer, **kwargs), *args)
    return plain(layer, *args, **kwargs)
