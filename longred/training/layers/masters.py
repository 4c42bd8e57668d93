"""Linear layers that compute in bfloat16 on float32 master weights without holding a copy of them.

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

from longred.objectives.precision import autocast_type, product

Forward = Callable[[Tensor], Tensor]
Saved = Callable[[], tuple[Tensor, ...]]
"""Returns the tensors that `save_first` saved."""


def hold_no_copies(model: PreTrainedModel) -> None:
    """Make a model's trained linear layers cast their weights again in the backward pass.

    Autocast holds each layer's bfloat16 copy until its backward pass: 2 bytes per parameter of the
    model. Casting twice costs one pass over the weights per micro-batch. On a CPU the results are
    those of autocast, bit for bit; on a GPU weight gradients are not rounded to bfloat16 before
    they become float32.

    Args:
        model: changed in place; behaves as before outside autocast.
    """
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.requires_grad:
            linear: Any = module
            linear.forward = functools.partial(_forward, module, module.forward)
        elif stacked_experts(module):
            experts: Any = module
            experts.forward = functools.partial(_experts, module, module.forward)


def stacked_experts(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return a module's own weights that hold one matrix per expert, by name."""
    return {name: w for name, w in module.named_parameters(recurse=False) if w.ndim == 3}


def _experts(experts: nn.Module, forward: Callable[..., Any], hidden: Tensor, *args: Any) -> Any:
    """Compute experts in the autocast dtype, which does not reach the products of stacked weights.

    Sharded weights are gathered in that dtype; here the copies are held until the backward pass.
    """
    dtype, weights = autocast_type(hidden), stacked_experts(experts)
    if dtype is None or all(weight.dtype == dtype for weight in weights.values()):
        return forward(hidden, *args)
    rounded_weights = {name: weight.to(dtype) for name, weight in weights.items()}
    return torch.func.functional_call(experts, rounded_weights, (hidden, *args))


def _forward(linear: nn.Linear, forward: Forward, input_: Tensor) -> Tensor:
    dtype = compute_type(linear, input_)
    return forward(input_) if dtype is None else rounded_linear(linear, input_.to(dtype))


def rounded(input_: Tensor) -> Tensor:
    """Cast a linear layer's input to the autocast dtype."""
    dtype = autocast_type(input_)
    return input_ if dtype is None else input_.to(dtype)


def compute_type(linear: nn.Linear, input_: Tensor) -> torch.dtype | None:
    """Return the autocast dtype for a layer with float32 masters under grad mode; else None."""
    is_master = linear.weight.dtype == torch.float32
    return autocast_type(input_) if is_master and torch.is_grad_enabled() else None


def rounded_linear(linear: nn.Linear, input_: Tensor) -> Tensor:
    """Apply a linear layer in the input's dtype, casting its weight in both passes.

    Inside `without_output` the product is skipped and the output has no values.
    """
    saved = save_first(input_, linear.weight)
    computes = not is_without_output(linear)
    output: Tensor = _RoundedLinear.apply(saved, computes, input_, linear.weight, linear.bias)  # type: ignore[no-untyped-call]
    return output


def is_without_output(linear: nn.Linear) -> bool:
    """Return whether a layer is inside `without_output`."""
    return bool(getattr(linear, "is_without_output", False))


@contextlib.contextmanager
def without_output(linear: nn.Linear | None) -> Iterator[None]:
    """Let a linear layer compute gradients but no output.

    A layer that is recomputed for its gradients ends with a product that no gradient needs.
    """
    if linear is None:
        yield
        return
    values: Any = vars(linear)
    forward = values.get("forward")
    values["forward"] = lambda input_: rounded_linear(linear, rounded(input_))
    values["is_without_output"] = True
    try:
        yield
    finally:
        del values["forward"], values["is_without_output"]
        if forward is not None:
            values["forward"] = forward


def save_first(*tensors: Tensor) -> Saved:
    """Save tensors for a backward pass before the computation that uses them.

    The recomputation of a checkpointed layer stops when everything that the layer saved is there.
    A function that saves its own inputs saves them after it has run: as a layer's last function it
    would be recomputed for nothing.

    Args:
        tensors: at least one of them requires a gradient.

    Returns:
        A function that the backward pass calls once for the tensors.
    """
    # The graph node that saved the tensors lives as long as its output.
    anchors: list[Tensor] = [_Saved.apply(*tensors)]  # type: ignore[no-untyped-call]

    def take() -> tuple[Tensor, ...]:
        if not anchors:
            raise RuntimeError("the saved tensors were taken already: a graph runs backward once")
        node: Any = anchors.pop().grad_fn
        saved: tuple[Tensor, ...] = node.saved_tensors
        return saved

    return take


class _Saved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return torch.empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise AssertionError("the output of _Saved has no consumers")


class _RoundedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        saved: Saved,
        computes: bool,
        input_: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
    ) -> Tensor:
        ctx.saved = saved
        if not computes:
            return input_.new_empty(()).expand(*input_.shape[:-1], len(weight_OI))
        return rounded_product(input_, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (output_grad,) = grads
        input_, weight_OI = ctx.saved()
        _, _, needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        input_grad = input_gradient(output_grad, weight_OI) if needs_input else None
        weight_grad_OI = weight_gradient(output_grad, input_, weight_OI) if needs_weight else None
        bias_grad_O = bias_gradient(output_grad, weight_OI) if needs_bias else None
        return None, None, input_grad, weight_grad_OI, bias_grad_O


def rounded_product(input_: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return a linear layer's output, weight and bias cast to the input's dtype."""
    dtype = input_.dtype
    return F.linear(input_, weight_OI.to(dtype), None if bias_O is None else bias_O.to(dtype))


def input_gradient(output_grad: Tensor, weight_OI: Tensor) -> Tensor:
    """Return the gradient of a linear layer's input, in the dtype of `output_grad`."""
    grad_MI = output_grad.flatten(0, -2) @ weight_OI.to(output_grad.dtype)
    return grad_MI.view(*output_grad.shape[:-1], -1)


def weight_gradient(output_grad: Tensor, input_: Tensor, weight_OI: Tensor) -> Tensor:
    """Return the gradient of a linear layer's weight, in the weight's dtype."""
    return product(output_grad.flatten(0, -2).T, input_.flatten(0, -2), weight_OI.dtype)


def bias_gradient(output_grad: Tensor, weight_OI: Tensor) -> Tensor:
    """Return the gradient of a linear layer's bias, in the weight's dtype."""
    return output_grad.flatten(0, -2).sum(dim=0).to(weight_OI.dtype)
