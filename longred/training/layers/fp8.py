"""Linear layers whose products are taken in 8-bit floats, and what that does to a model.

Inputs and weights are scaled by their largest value and rounded to e4m3, gradients to e5m2, anew in
every pass (torchao's tensorwise recipe; the formats are those of arXiv 2209.05433). Masters,
gradients of weights and everything between the layers stay as they are without. A weight is rounded
to bfloat16 before: several processes gather it so, and one process computes what they do.
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
"""The first compute capability of a GPU that multiplies 8-bit floats."""


def check_fp8(device: torch.device) -> None:
    """Refuse a device that does not multiply 8-bit floats.

    Raises:
        PreflightError: it does not, or torchao is not installed.
    """
    if device.type != "cuda":
        raise PreflightError(
            f"training.fp8: needs a GPU of compute capability 8.9 or more, and the device is "
            f"{device.type}; set it to false"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        raise PreflightError(
            "training.fp8: needs a GPU of compute capability 8.9 or more (H100, L40S), and this "
            f"one has {capability[0]}.{capability[1]}; set it to false"
        )


def to_fp8(model: PreTrainedModel, *, emulate: bool = False, is_compiled: bool = False) -> None:
    """Make the linear layers of a model's decoder compute in 8-bit floats.

    Layers with a side that is no multiple of 16, which the kernels do not take, stay as they are.

    Args:
        model: changed in place; its weights stay the same tensors.
        emulate: round as the kernels do but multiply in higher precision, on any device.
        is_compiled: whether each layer is compiled by itself. Without, scales and roundings take
            passes of their own, which cost about what the products gain.

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

    # Compiled, the master is what is held until the backward pass, not what it is rounded to.
    weight_OI = linear.weight.to(torch.bfloat16)
    output: Tensor = matmul_with_hp_or_float8_args.apply(
        rounded(input_), weight_OI.t(), linear.linear_mm_config, linear.config
    )
    return output if linear.bias is None else output + linear.bias.to(output.dtype)


def _changed(model: PreTrainedModel) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__ == "Float8Linear"]


@contextlib.contextmanager
def without_fp8(model: PreTrainedModel) -> Iterator[None]:
    """Run a model that `to_fp8` changed as if it had not."""
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
