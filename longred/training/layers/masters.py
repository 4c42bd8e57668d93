"""Linear layers that compute in bfloat16 on float32 master weights, and hold no copy of them.

Shapes: M tokens (rows laid end to end), I input and O output features.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from longred.objectives.precision import product

Forward = Callable[[Tensor], Tensor]


def hold_no_copies(model: PreTrainedModel) -> None:
    """Make a model's trained linear layers round their weights again in the backward pass.

    Under autocast each layer's bfloat16 copy is held until its backward: 2 bytes a parameter, all
    layers together. Rounding a second time costs one pass over the weights a micro-batch. On a CPU
    the numbers are those of autocast, to the last bit; on a GPU the gradients of weights are not
    rounded to bfloat16 on their way to float32.

    Args:
        model: changed in place; nothing changes outside autocast.
    """
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.requires_grad:
            linear: Any = module
            linear.forward = functools.partial(_forward, module, module.forward)


def _forward(linear: nn.Linear, forward: Forward, input_: Tensor) -> Tensor:
    dtype = compute_type(linear, input_)
    return forward(input_) if dtype is None else rounded_linear(linear, input_.to(dtype))


def autocast_type(tensor: Tensor) -> torch.dtype | None:
    """Return the type that autocast gives on a tensor's device; None where it is off."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def rounded(input_: Tensor) -> Tensor:
    """Return what a linear layer would round its input to."""
    dtype = autocast_type(input_)
    return input_ if dtype is None else input_.to(dtype)


def compute_type(linear: nn.Linear, input_: Tensor) -> torch.dtype | None:
    """Return the type that autocast gives a trained layer on float32 masters; None elsewhere."""
    is_master = linear.weight.dtype == torch.float32
    return autocast_type(input_) if is_master and torch.is_grad_enabled() else None


def rounded_linear(linear: nn.Linear, input_: Tensor) -> Tensor:
    """Return a layer's output in its input's type, its weight rounded to that type on every pass.

    Inside `without_output` the product is left out and the output has no values.
    """
    kept = save_first(input_, linear.weight)
    computes = not is_without_output(linear)
    output: Tensor = _RoundedLinear.apply(kept, computes, input_, linear.weight, linear.bias)  # type: ignore[no-untyped-call]
    return output


_WITHOUT_OUTPUT = "is_without_output"


def is_without_output(linear: nn.Linear) -> bool:
    """Return whether a layer is inside `without_output`."""
    return bool(getattr(linear, _WITHOUT_OUTPUT, False))


@contextlib.contextmanager
def without_output(linear: nn.Linear | None) -> Iterator[None]:
    """Let a linear layer give gradients without computing its output, which nobody will read.

    A layer computed again for its gradients ends with a product that no gradient needs.
    """
    if linear is None:
        yield
        return
    values: Any = vars(linear)
    forward = values.get("forward")
    values["forward"] = functools.partial(_unevaluated, linear)
    values[_WITHOUT_OUTPUT] = True
    try:
        yield
    finally:
        del values["forward"], values[_WITHOUT_OUTPUT]
        if forward is not None:
            values["forward"] = forward


def _unevaluated(linear: nn.Linear, input_: Tensor) -> Tensor:
    return rounded_linear(linear, rounded(input_))


class Kept:
    """Tensors that were saved; a node of the graph lives as long as a tensor that it made."""

    def __init__(self, anchor: Tensor) -> None:
        self._anchor: Tensor | None = anchor

    def take(self) -> tuple[Tensor, ...]:
        """Return the tensors, once."""
        if self._anchor is None:
            raise RuntimeError("a graph's saved tensors were taken already: it runs backward once")
        node: Any = self._anchor.grad_fn
        tensors: tuple[Tensor, ...] = node.saved_tensors
        self._anchor = None
        return tensors


def save_first(*tensors: Tensor) -> Kept:
    """Save tensors for a backward pass before the work that is done with them.

    A checkpointed layer is computed again only until everything that it saved is there. A function
    that saves its own inputs saves them when it is done: as the last one of a layer it would run
    once more for nothing.

    Args:
        tensors: at least one of them needs a gradient.

    Returns:
        What the function hands to its own backward pass, which takes the tensors from it.
    """
    return Kept(_Saved.apply(*tensors))  # type: ignore[no-untyped-call]


class _Saved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return torch.empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise AssertionError("nothing is computed from what this returns")


class _RoundedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kept: Kept,
        computes: bool,
        input_: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
    ) -> Tensor:
        ctx.kept = kept
        if not computes:
            return input_.new_empty(()).expand(*input_.shape[:-1], len(weight_OI))
        return rounded_product(input_, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (output_grad,) = grads
        input_, weight_OI = ctx.kept.take()
        _, _, needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        input_grad = input_gradient(output_grad, weight_OI) if needs_input else None
        weight_grad_OI = weight_gradient(output_grad, input_, weight_OI) if needs_weight else None
        bias_grad_O = bias_gradient(output_grad, weight_OI) if needs_bias else None
        return None, None, input_grad, weight_grad_OI, bias_grad_O


def rounded_product(input_: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return a linear layer's output, weight and bias rounded to the input's type."""
    dtype = input_.dtype
    return F.linear(input_, weight_OI.to(dtype), None if bias_O is None else bias_O.to(dtype))


def input_gradient(output_grad: Tensor, weight_OI: Tensor) -> Tensor:
    """Return the gradient of a linear layer's input, in the type of its output's."""
    grad_MI = output_grad.flatten(0, -2) @ weight_OI.to(output_grad.dtype)
    return grad_MI.view(*output_grad.shape[:-1], -1)


def weight_gradient(output_grad: Tensor, input_: Tensor, weight_OI: Tensor) -> Tensor:
    """Return the gradient of a linear layer's weight, in the weight's type."""
    return product(output_grad.flatten(0, -2).T, input_.flatten(0, -2), weight_OI.dtype)


def bias_gradient(output_grad: Tensor, weight_OI: Tensor) -> Tensor:
    """Return the gradient of a linear layer's bias, in its weight's type."""
    return output_grad.flatten(0, -2).sum(dim=0).to(weight_OI.dtype)
