"""Linear layers that compute in bfloat16 on float32 master weights, and hold no copy of them.

Shapes: M tokens (rows laid end to end), I input and O output features.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

Forward = Callable[[Tensor], Tensor]


def hold_no_copies(model: PreTrainedModel) -> None:
    """Make a model's trained linear layers round their weights anew in the backward pass.

    Under autocast each layer's bfloat16 copy is held until its backward: 2 bytes a parameter, all
    layers together. Rounding a second time costs one pass over the weights a micro-batch. The
    numbers are those of autocast, to the last bit.

    Args:
        model: changed in place; nothing changes outside autocast.
    """
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.requires_grad:
            linear: Any = module
            linear.forward = functools.partial(_forward, module, module.forward)


def _forward(linear: nn.Linear, forward: Forward, input_: Tensor) -> Tensor:
    device = input_.device.type
    is_master = linear.weight.dtype == torch.float32
    if not (is_master and torch.is_autocast_enabled(device) and torch.is_grad_enabled()):
        return forward(input_)
    dtype = torch.get_autocast_dtype(device)
    output: Tensor = RoundedLinear.apply(input_.to(dtype), linear.weight, linear.bias)  # type: ignore[no-untyped-call]
    return output


class RoundedLinear(torch.autograd.Function):
    """A linear layer in its input's type, which its weight is rounded to anew for its gradient."""

    @staticmethod
    def forward(ctx: Any, input_: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Return the output."""
        ctx.save_for_backward(input_, weight_OI)
        dtype = input_.dtype
        return F.linear(input_, weight_OI.to(dtype), None if bias_O is None else bias_O.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Return the gradients of what needs one."""
        (output_grad,) = grads
        input_, weight_OI = ctx.saved_tensors
        output_grad_MO, input_MI = output_grad.flatten(0, -2), input_.flatten(0, -2)
        input_grad = weight_grad_OI = bias_grad_O = None
        if ctx.needs_input_grad[0]:
            input_grad = (output_grad_MO @ weight_OI.to(input_.dtype)).view(input_.shape)
        if ctx.needs_input_grad[1]:
            weight_grad_OI = (output_grad_MO.T @ input_MI).to(weight_OI.dtype)
        if ctx.needs_input_grad[2]:
            bias_grad_O = output_grad_MO.sum(dim=0).to(weight_OI.dtype)
        return input_grad, weight_grad_OI, bias_grad_O
