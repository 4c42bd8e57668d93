"""What decoder layers do between their products, as functions that hold little and are fused.

transformers computes norms, RoPE and gated activations step by step: under autocast in float32, the
result rounded once for every linear layer that reads it, every step's input held for the backward
pass. Here each is one function, compiled into one kernel on a GPU and run as written elsewhere:

    norm                  holds its input; gives linear layers their type, rounded once for all
    RoPE                  holds nothing of its own; gives attention its type
    gated MLP             holds gate and up; their product is computed again in the backward pass

Where the functions run as written, forward results are those of transformers to the last bit (but
for soft-capped attention, which is exact and would see queries and keys before they are rounded).
Gradients differ by the order of sums in float32. In bfloat16 the gradients that several linear
layers give one input are summed in bfloat16, and those of RoPE's two parts are rounded together.

Shapes: B rows, T tokens, H heads, d head dimension, n of its dimensions that RoPE turns, M tokens
of all rows, D hidden dimension, F of the MLP's inside.
"""

import contextlib
import contextvars
import functools
import logging
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from longred.training.layers.compiling import compiled, compiler_problem
from longred.training.layers.masters import (
    Kept,
    autocast_type,
    bias_gradient,
    compute_type,
    input_gradient,
    is_without_output,
    rounded,
    rounded_product,
    save_first,
    weight_gradient,
)

log = logging.getLogger(__name__)


class Formula(NamedTuple):
    """How a norm scales the normalised values.

    Attributes:
        adds_one: whether by 1 + weight.
        rounds_first: whether they are rounded to the input's type before that, or after it.
    """

    adds_one: bool
    rounds_first: bool


NORMS = {
    **dict.fromkeys(
        ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Phi3RMSNorm"),
        Formula(adds_one=False, rounds_first=True),
    ),
    "Olmo2RMSNorm": Formula(adds_one=False, rounds_first=False),
    **dict.fromkeys(("Gemma2RMSNorm", "Gemma3RMSNorm"), Formula(adds_one=True, rounds_first=False)),
}
"""transformers' norms by class; others are left as they are."""

GATED = frozenset(
    ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "Olmo2MLP", "Gemma2MLP", "Gemma3MLP")
)
"""MLPs down(act(gate(x)) * up(x)); Phi3MLP has gate and up in one layer."""

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (F.silu, torch.ops.aten.silu_backward),
    "gelu_pytorch_tanh": (
        functools.partial(F.gelu, approximate="tanh"),
        functools.partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    ),
}
"""Activation and its gradient, from the output's gradient and the input."""

ROPE_NAME = "apply_rotary_pos_emb"


def fuse(model: PreTrainedModel) -> None:
    """Compute norms, RoPE and gated MLPs of a model's decoder by the functions of this file.

    Args:
        model: changed in place, before its MLPs are tiled and its layers checkpointed. What a
            module here is not known to compute is left to transformers.
    """
    base: Any = model.base_model
    for layer in base.layers:
        readers = _norms_before_linears(layer)
        for module in layer.modules():
            _fuse_norm(module, feeds_linears=any(module is norm for norm in readers))
        _fuse_attention(layer.self_attn)
        _fuse_mlp(layer.mlp, _activation(model.config))
    _fuse_norm(base.norm, feeds_linears=False)


def _norms_before_linears(layer: Any) -> list[nn.Module]:
    """Return the norms whose outputs only linear layers read."""
    if not hasattr(layer, "input_layernorm"):
        return []  # OLMo-2 normalises what its linear layers give, not what they read
    second = getattr(layer, "pre_feedforward_layernorm", layer.post_attention_layernorm)
    return [layer.input_layernorm, second]


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


# --- Norms ----------------------------------------------------------------------------------------


def _fuse_norm(module: Any, *, feeds_linears: bool) -> None:
    formula = NORMS.get(type(module).__name__)
    if formula is None:
        return
    eps = getattr(module, "variance_epsilon", None)
    eps = float(module.eps if eps is None else eps)
    module.forward = functools.partial(_norm, module, eps, formula, feeds_linears)


def _norm(module: Any, eps: float, formula: Formula, feeds_linears: bool, hidden: Tensor) -> Tensor:
    dtype = autocast_type(hidden) if feeds_linears else None
    if dtype is None:
        dtype = hidden.dtype
        if formula.rounds_first:
            dtype = torch.promote_types(dtype, module.weight.dtype)
    # Also where no gradient is needed: nothing is saved then.
    output: Tensor = _Norm.apply(hidden, module.weight, eps, formula, dtype)  # type: ignore[no-untyped-call]
    return output


def normalise(
    hidden_MD: Tensor, weight_D: Tensor, eps: float, formula: Formula, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the scaled norm [M, D] in a type, and 1 / root mean square [M, 1] in float32."""
    precise_MD = hidden_MD.to(torch.float32)
    scale_M1 = torch.rsqrt(precise_MD.pow(2).mean(-1, keepdim=True) + eps)
    unit_MD = precise_MD * scale_M1
    if formula.rounds_first:
        return (weight_D * unit_MD.to(hidden_MD.dtype)).to(dtype), scale_M1
    weight_D = 1.0 + weight_D.float() if formula.adds_one else weight_D
    return (unit_MD * weight_D).to(hidden_MD.dtype).to(dtype), scale_M1


def normalise_backward(
    grad_MD: Tensor, hidden_MD: Tensor, weight_D: Tensor, scale_M1: Tensor, formula: Formula
) -> tuple[Tensor, Tensor]:
    """Return the gradients of hidden_MD and weight_D."""
    grad_MD, precise_MD = grad_MD.to(torch.float32), hidden_MD.to(torch.float32)
    unit_MD = precise_MD * scale_M1
    if formula.rounds_first:
        weight_grad_D = (grad_MD * unit_MD.to(hidden_MD.dtype)).sum(0)
        unit_grad_MD = (grad_MD * weight_D).to(hidden_MD.dtype).to(torch.float32)
    else:
        weight_grad_D = (grad_MD * unit_MD).sum(0)
        unit_grad_MD = grad_MD * (1.0 + weight_D.float() if formula.adds_one else weight_D)
    scale_grad_M1 = (unit_grad_MD * precise_MD).sum(-1, keepdim=True)
    square_grad_M1 = -0.5 * scale_grad_M1 * scale_M1.pow(3) / hidden_MD.shape[-1]
    hidden_grad_MD = unit_grad_MD * scale_M1 + square_grad_M1 * (2.0 * precise_MD)
    return hidden_grad_MD.to(hidden_MD.dtype), weight_grad_D.to(weight_D.dtype)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight_D: Tensor,
        eps: float,
        formula: Formula,
        dtype: torch.dtype,
    ) -> Tensor:
        hidden_MD = hidden.detach().flatten(0, -2)
        kernel = _fastest(normalise, hidden)
        output_MD, scale_M1 = kernel(hidden_MD, weight_D.detach(), eps, formula, dtype)
        ctx.formula = formula
        ctx.save_for_backward(hidden, weight_D, scale_M1)
        return torch.ops.aten._unsafe_view(output_MD, hidden.shape)  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, weight_D, scale_M1 = ctx.saved_tensors
        hidden_MD, grad_MD = hidden.detach().flatten(0, -2), grad.flatten(0, -2)
        kernel = _fastest(normalise_backward, hidden)
        hidden_grad_MD, weight_grad_D = kernel(
            grad_MD, hidden_MD, weight_D.detach(), scale_M1, ctx.formula
        )
        needs_weight = ctx.needs_input_grad[1]
        weight_grad_D = weight_grad_D if needs_weight else None
        return hidden_grad_MD.view(hidden.shape), weight_grad_D, None, None, None


# --- RoPE -----------------------------------------------------------------------------------------


def _fuse_attention(module: Any) -> None:
    """Let an attention layer turn queries and keys by `rotated`, and round its input once."""
    forward = type(module).forward
    if ROPE_NAME not in forward.__code__.co_names:
        log.warning("%s does not call %s: RoPE is not fused", type(module).__name__, ROPE_NAME)
        return
    # The same code under its own globals: the module of transformers stays as it is for others.
    own = types.FunctionType(
        forward.__code__,
        {**forward.__globals__, ROPE_NAME: rotated},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    own.__kwdefaults__ = forward.__kwdefaults__
    module.forward = functools.partial(_attention, types.MethodType(own, module))


def _attention(
    forward: Callable[..., Any], hidden_states: Tensor, *args: Any, **kwargs: Any
) -> Any:
    return forward(rounded(hidden_states), *args, **kwargs)


def rotated(
    query_BHTd: Tensor, key_BhTd: Tensor, cos_BTn: Tensor, sin_BTn: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Turn queries and keys by their positions, in place of transformers' own function.

    Returns:
        Both in autocast's type, which attention would round them to, or the wider of their type
        and that of the angles.
    """
    cos, sin = cos_BTn.unsqueeze(unsqueeze_dim), sin_BTn.unsqueeze(unsqueeze_dim)
    return _turned(query_BHTd, cos, sin), _turned(key_BhTd, cos, sin)


def _turned(x_BHTd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    dtype = autocast_type(x_BHTd) or torch.promote_types(x_BHTd.dtype, cos.dtype)
    output: Tensor = _Turn.apply(x_BHTd, cos, sin, dtype)  # type: ignore[no-untyped-call]
    return output


def turn(x_BHTd: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x_BHTd, its first n dimensions turned, in a type."""
    num_turned = cos.shape[-1]
    part = x_BHTd[..., :num_turned]
    first, second = part.chunk(2, dim=-1)
    result = (part * cos) + (torch.cat((-second, first), dim=-1) * sin)
    if num_turned < x_BHTd.shape[-1]:
        result = torch.cat((result, x_BHTd[..., num_turned:]), dim=-1)
    return result.to(dtype)


def turn_backward(grad_BHTd: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient of x_BHTd, in its type."""
    num_turned = cos.shape[-1]
    part = grad_BHTd[..., :num_turned].to(cos.dtype)
    first, second = (part * sin).chunk(2, dim=-1)
    result = (part * cos) + torch.cat((second, -first), dim=-1)
    if num_turned < grad_BHTd.shape[-1]:
        result = torch.cat((result, grad_BHTd[..., num_turned:].to(cos.dtype)), dim=-1)
    return result.to(dtype)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BHTd: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x_BHTd.dtype
        return _fastest(turn, x_BHTd)(x_BHTd.detach(), cos, sin, dtype)  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHTd: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        grad = _fastest(turn_backward, grad_BHTd)(grad_BHTd, cos, sin, ctx.dtype)
        return grad, None, None, None


# --- Gated MLPs -----------------------------------------------------------------------------------


def _fuse_mlp(module: Any, activation: str) -> None:
    if activation not in ACTIVATIONS:
        return
    if type(module).__name__ in GATED:
        module.forward = functools.partial(_mlp, module, activation)
    elif type(module).__name__ == "Phi3MLP":
        module.forward = functools.partial(_phi3_mlp, module, activation)


def _mlp(module: Any, activation: str, hidden: Tensor) -> Tensor:
    hidden = rounded(hidden)
    return _down(module.down_proj, activation, module.gate_proj(hidden), module.up_proj(hidden))


def _phi3_mlp(module: Any, activation: str, hidden: Tensor) -> Tensor:
    gate, up = module.gate_up_proj(rounded(hidden)).chunk(2, dim=-1)
    return _down(module.down_proj, activation, gate, up)


def _down(linear: Any, activation: str, gate: Tensor, up: Tensor) -> Tensor:
    output: Tensor
    is_trained = type(linear) is nn.Linear and linear.weight.requires_grad
    is_trained = is_trained and torch.is_grad_enabled()
    if is_trained and gate.dtype == up.dtype == (compute_type(linear, gate) or linear.weight.dtype):
        kept = save_first(gate, up, linear.weight)
        computes = not is_without_output(linear)
        output = _GatedLinear.apply(  # type: ignore[no-untyped-call]
            kept, activation, computes, gate, up, linear.weight, linear.bias
        )
        return output
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
    """act(gate) * up, whose steps are not held."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(gate, up)
        return _fastest(gated, gate)(gate.detach(), up.detach(), activation)  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        kernel = _fastest(gated_backward, gate)
        gate_grad, up_grad, _ = kernel(grad, gate.detach(), up.detach(), ctx.activation)
        return gate_grad, up_grad, None


class _GatedLinear(torch.autograd.Function):
    """A linear layer of act(gate) * up, which is not held for the weight's gradient either."""

    @staticmethod
    def forward(
        ctx: Any,
        kept: Kept,
        activation: str,
        computes: bool,
        gate: Tensor,
        up: Tensor,
        weight_DF: Tensor,
        bias_D: Tensor | None,
    ) -> Tensor:
        ctx.kept, ctx.activation = kept, activation
        if not computes:
            return gate.new_empty(()).expand(*gate.shape[:-1], len(weight_DF))
        inner = _fastest(gated, gate)(gate.detach(), up.detach(), activation)
        return rounded_product(inner, weight_DF, bias_D)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, output_grad: Tensor) -> Any:
        gate, up, weight_DF = ctx.kept.take()
        inner_grad = input_gradient(output_grad, weight_DF)
        gate_grad, up_grad, inner = _fastest(gated_backward, gate)(
            inner_grad, gate.detach(), up.detach(), ctx.activation
        )
        del inner_grad
        weight_grad_DF = weight_gradient(output_grad, inner, weight_DF)
        bias_grad_D = bias_gradient(output_grad, weight_DF) if ctx.needs_input_grad[6] else None
        return None, None, None, gate_grad, up_grad, weight_grad_DF, bias_grad_D


# --- How they are run -----------------------------------------------------------------------------


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return compiled(function)


@functools.cache
def _compiles() -> bool:
    if not torch.cuda.is_available():
        return False
    problem = compiler_problem("cuda")
    if problem:
        log.warning("training.fused: %s; until then norms, RoPE and MLPs are slower", problem)
    return problem is None


_as_written = contextvars.ContextVar("as_written", default=False)


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Run the functions without compiling them: for rows of many lengths, each seen once."""
    token = _as_written.set(True)
    try:
        yield
    finally:
        _as_written.reset(token)


def _fastest(function: Callable[..., Any], tensor: Tensor) -> Callable[..., Any]:
    """Return a function, compiled for tensors of a GPU."""
    if tensor.is_cuda and _compiles() and not _as_written.get():
        return _compiled(function)
    return function
