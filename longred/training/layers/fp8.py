"""Linear layers that multiply in 8-bit floats, by torchao.

Inputs and weights are scaled by their largest value and rounded to e4m3, gradients to e5m2, in
every pass (torchao's tensorwise recipe; formats of arXiv 2209.05433). Masters, weight gradients and
everything between the linear layers keep their dtypes. Weights are rounded to bfloat16 first, as
several processes gather them, so that one process computes the same bits.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longred.errors import PreflightError
from longred.training.layers.compiling import compiled
from longred.training.layers.masters import rounded

CAPABILITY = (8, 9)
"""First compute capability with 8-bit float products."""


def check_fp8(device: torch.device) -> None:
    """Refuse a device that cannot multiply 8-bit floats.

    Raises:
        PreflightError: the device cannot.
    """
    needs = "training.fp8: needs a GPU of compute capability 8.9 or more"
    if device.type != "cuda":
        raise PreflightError(f"{needs}, and the device is {device.type}; set it to false")
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < CAPABILITY:
        raise PreflightError(
            f"{needs} (H100, L40S), and this one has {major}.{minor}; set it to false"
        )


def to_fp8(model: PreTrainedModel, *, emulate: bool = False, is_compiled: bool = False) -> None:
    """Make the linear layers of a model's decoder multiply in 8-bit floats.

    Layers with a side that is not a multiple of 16 are left unchanged: the kernels need that.

    Args:
        model: changed in place; its weights stay the same tensors.
        emulate: round as the kernels do, but multiply in higher precision, on any device.
        is_compiled: whether to compile each linear layer. Uncompiled, scaling and rounding are
            separate passes, which cost about as much as the faster products save.

    Raises:
        PreflightError: torchao is not installed.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise PreflightError(
            f"training.fp8: needs torchao ({error}); pip install torchao, or set it to false"
        ) from error
    base: Any = model.base_model
    for layer in base.layers:
        convert_to_float8_training(
            layer,
            module_filter_fn=lambda module, name: not any(s % 16 for s in module.weight.shape),
            config=Float8LinearConfig(emulate=emulate),
        )
    forward = compiled(_forward) if is_compiled else _forward
    for module in _changed(model):
        module.forward = functools.partial(forward, module)


def _forward(linear: Any, input_: Tensor) -> Tensor:
    from torchao.float8.float8_linear import matmul_with_hp_or_float8_args

    # Compiled, the master is held until the backward pass, not its rounded copy.
    weight_OI = linear.weight.to(torch.bfloat16)
    output: Tensor = matmul_with_hp_or_float8_args.apply(
        rounded(input_), weight_OI.t(), linear.linear_mm_config, linear.config
    )
    return output if linear.bias is None else output + linear.bias.to(output.dtype)


def _changed(model: PreTrainedModel) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__ == "Float8Linear"]


@contextlib.contextmanager
def without_fp8(model: PreTrainedModel) -> Iterator[None]:
    """Run a model that `to_fp8` changed without 8-bit floats."""
    changed = _changed(model)
    forwards = [vars(module).get("forward") for module in changed]
    for module in changed:
        module.forward = functools.partial(nn.Linear.forward, module)
    try:
        yield
    finally:
        for module, forward in zip(changed, forwards, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward
