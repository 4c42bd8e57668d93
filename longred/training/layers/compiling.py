"""Compilation by torch: of whole decoder layers, and of single functions on a GPU."""

import contextlib
import contextvars
import functools
import importlib.util
import inspect
import logging
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longred.errors import PreflightError

log = logging.getLogger(__name__)

Forward = Callable[..., Any]


def compile_layers(model: PreTrainedModel) -> None:
    """Compile the parts of decoder layers before and after attention, once for all layers.

    Fused kernels keep the roundings of eager mode: results differ only where a value is rounded to
    its other neighbour. The attention function runs uncompiled in between, with any positions,
    documents and captures; checkpointing wraps the compiled parts and can hold its outputs. Unlike
    with `masters`, layers that are not checkpointed hold the bfloat16 copies of their weights until
    their backward pass.

    Args:
        model: changed in place; adapters and fp8 layers must be in place already.
    """
    base: Any = model.base_model
    for layer in base.layers:
        # transformers wraps a layer's forward in checkpointing, which disables compilation.
        forward = type(layer).forward
        plain = compiled(getattr(forward, "__wrapped__", forward))
        layer.forward = functools.partial(_forward, layer, plain)


SHAPES = 64
"""Number of shapes that one function is compiled for; further shapes run uncompiled.

A training run has few: all rows of a bucket have one length. torch's own limit is 8.
"""


def compiled(forward: Forward) -> Forward:
    """Compile a function for each shape, keeping the roundings of eager mode."""
    settings: dict[str, Any] = {"dynamic": False, "options": {"emulate_precision_casts": True}}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        # In these versions torch's configuration is thread-local, and backward passes on a GPU run
        # in another thread.
        settings["recompile_limit"] = SHAPES
    else:
        dynamo: Any = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, SHAPES)
    result: Forward = torch.compile(forward, **settings)
    return result


_compiled = functools.cache(compiled)
_is_eager = contextvars.ContextVar("is_eager", default=False)


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Make `fastest` compile nothing: for rows of many lengths, each seen once."""
    token = _is_eager.set(True)
    try:
        yield
    finally:
        _is_eager.reset(token)


def fastest(function: Forward, tensor: Tensor) -> Forward:
    """Return the function, compiled if the tensor is on a GPU and a compiler is installed."""
    if tensor.is_cuda and _can_fuse() and not _is_eager.get():
        return _compiled(function)
    return function


@functools.cache
def _can_fuse() -> bool:
    problem = compiler_problem("cuda")
    if problem:
        log.warning("training.fused: %s; until then norms, RoPE and MLPs are slower", problem)
    return problem is None


def compiler_problem(device: str) -> str | None:
    """Return what torch's compiler lacks to build kernels for `cpu` or `cuda`, or None."""
    if device != "cuda":
        has_compiler = shutil.which("g++") or shutil.which("clang++")
        return None if has_compiler else "needs a C++ compiler; install g++"
    if importlib.util.find_spec("triton") is None:
        return "needs Triton; install it"
    # Triton compiles the launcher of its kernels.
    if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang")))):
        return "needs a C compiler for Triton; install gcc"
    # As Triton does: Debian's own scheme names a folder without headers.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    if not (Path(sysconfig.get_path("include", scheme)) / "Python.h").is_file():
        return "needs Python's headers for Triton; install python3-dev"
    return None


def check_compiler(device: torch.device, setting: str) -> None:
    """Check that torch can compile kernels for a device.

    Args:
        device: the device.
        setting: the dotted config key that needs them.

    Raises:
        PreflightError: a C++ compiler (CPU), Triton or its requirements (GPU) are missing.
    """
    problem = compiler_problem(device.type)
    if problem:
        raise PreflightError(f"{setting}: {problem}, or set it to false")


def _forward(layer: Any, plain: Forward, *args: Any, **kwargs: Any) -> Any:
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(functools.partial(plain, layer, **kwargs), *args)
    return plain(layer, *args, **kwargs)
