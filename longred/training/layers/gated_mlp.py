"""Gated MLPs as fused functions that hold gate and up alone; see `fused`.

Shapes: M tokens (rows laid end to end), D hidden dimension, F of the MLP's inside.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longred.training.layers import compiling
from longred.training.layers.masters import (
    Saved,
    bias_gradient,
    compute_type,
    input_gradient,
    is_without_output,
    rounded,
    rounded_product,
    save_first,
    weight_gradient,
)

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (F.silu, torch.ops.aten.silu_backward),
    "gelu_pytorch_tanh": (
        functools.partial(F.gelu, approximate="tanh"),
        functools.partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    ),
}
"""Activation, and its gradient from the output's gradient and the input."""


def fuse_mlp(mlp: Any, activation: str) -> None:
    """Compute a gated MLP by the functions of this file; leave other modules unchanged."""
    kind: Any = type(mlp)
    if activation in ACTIVATIONS and is_gated(kind):
        mlp.forward = functools.partial(_mlp, mlp, activation)


@functools.cache
def is_gated(kind: Any) -> bool:
    """Return whether a class of MLPs computes down(act(gate(x)) * up(x)) and nothing else.

    Its forward runs on a few values, with gate and up apart and, as in Phi-3, in one layer.
    """
    if not kind.__name__.endswith("MLP"):
        return False
    generator = torch.Generator().manual_seed(0)
    gate, up, down, x = (torch.randn(6, 6, generator=generator) for _ in range(4))
    expected = F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
    apart = {"gate_proj": gate, "up_proj": up}
    together = {"gate_up_proj": torch.cat((gate, up))}
    for weights in (apart, together):
        layers = {
            name: functools.partial(F.linear, weight=weight)
            for name, weight in {**weights, "down_proj": down}.items()
        }
        mlp = types.SimpleNamespace(**layers, act_fn=F.silu, activation_fn=F.silu)
        try:
            # Products of two layers may be summed in another order than those of one.
            if torch.allclose(kind.forward(mlp, x), expected, rtol=1e-4):
                return True
        except (AttributeError, TypeError, ValueError):
            continue  # It has other parts.
    return False


def _mlp(mlp: Any, activation: str, hidden: Tensor) -> Tensor:
    hidden = rounded(hidden)
    if hasattr(mlp, "gate_up_proj"):
        gate, up = mlp.gate_up_proj(hidden).chunk(2, dim=-1)
    else:
        gate, up = mlp.gate_proj(hidden), mlp.up_proj(hidden)
    linear = mlp.down_proj
    output: Tensor
    is_trained = type(linear) is nn.Linear and linear.weight.requires_grad
    is_trained = is_trained and torch.is_grad_enabled()
    if is_trained and gate.dtype == up.dtype == (compute_type(linear, gate) or linear.weight.dtype):
        saved = save_first(gate, up, linear.weight)
        computes = not is_without_output(linear)
        output = _GatedLinear.apply(  # type: ignore[no-untyped-call]
            saved, activation, computes, gate, up, linear.weight, linear.bias
        )
    else:
        output = linear(_Gated.apply(gate, up, activation))  # type: ignore[no-untyped-call]
    return output


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """Return act(gate) * up."""
    return ACTIVATIONS[activation][0](gate) * up


def gated_backward(
    grad: Tensor, gate: Tensor, up: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of gate and up, and act(gate) * up."""
    forward, backward = ACTIVATIONS[activation]
    active = forward(gate)
    return backward(grad * up, gate), grad * active, active * up


class _Gated(torch.autograd.Function):
    """act(gate) * up; holds gate and up alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(gate, up)
        return compiling.fastest(gated, gate)(gate.detach(), up.detach(), activation)  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        kernel = compiling.fastest(gated_backward, gate)
        gate_grad, up_grad, _ = kernel(grad, gate.detach(), up.detach(), ctx.activation)
        return gate_grad, up_grad, None


class _GatedLinear(torch.autograd.Function):
    """A linear layer of act(gate) * up that does not hold its input for the weight's gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        saved: Saved,
        activation: str,
        computes: bool,
        gate: Tensor,
        up: Tensor,
        weight_DF: Tensor,
        bias_D: Tensor | None,
    ) -> Tensor:
        ctx.saved, ctx.activation = saved, activation
        if not computes:
            return gate.new_empty(()).expand(*gate.shape[:-1], len(weight_DF))
        inner = compiling.fastest(gated, gate)(gate.detach(), up.detach(), activation)
        return rounded_product(inner, weight_DF, bias_D)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, output_grad: Tensor) -> Any:
        gate, up, weight_DF = ctx.saved()
        inner_grad = input_gradient(output_grad, weight_DF)
        gate_grad, up_grad, inner = compiling.fastest(gated_backward, gate)(
            inner_grad, gate.detach(), up.detach(), ctx.activation
        )
        del inner_grad
        weight_grad_DF = weight_gradient(output_grad, inner, weight_DF)
        bias_grad_D = bias_gradient(output_grad, weight_DF) if ctx.needs_input_grad[6] else None
        return None, None, None, gate_grad, up_grad, weight_grad_DF, bias_grad_D
