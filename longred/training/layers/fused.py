"""Norms, RoPE and gated MLPs of decoder layers as fused functions that hold little.

transformers computes them step by step: under autocast in float32, with a cast for every linear
layer that reads the result and every step's input held for the backward pass. Here each is one
function, compiled into one kernel on a GPU and run eagerly elsewhere:

    norm         holds its input; casts its output once for all linear layers that read it
    RoPE         holds nothing of its own; casts its output for attention
    gated MLP    holds gate and up; recomputes their product in the backward pass (`gated_mlp`)

Run eagerly, forward results are those of transformers bit for bit (except for soft-capped
attention, which computes in float32 and would see queries and keys before the cast). Gradients
differ by the order of float32 sums. In bfloat16 the gradients that several linear layers give one
input are summed in bfloat16, and those of RoPE's two parts are rounded together.

Liger's kernels are not used: they run on GPUs only, and its MLP also holds act(gate) * up.

Shapes: B rows, T tokens, H heads, d head dimension, n of its dimensions that RoPE rotates, M tokens
of all rows, D hidden dimension.
"""

import functools
import itertools
import logging
import operator
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longred.objectives.precision import autocast_type
from longred.training.layers import compiling
from longred.training.layers.gated_mlp import fuse_mlp
from longred.training.layers.masters import rounded

log = logging.getLogger(__name__)

ROPE_NAME = "apply_rotary_pos_emb"


class Formula(NamedTuple):
    """How a norm scales the normalised values.

    Attributes:
        adds_one: whether the factor is 1 + weight instead of weight.
        rounds_first: whether they are rounded to the input's dtype before scaling, not after it.
    """

    adds_one: bool
    rounds_first: bool


FORMULAS = tuple(Formula(*each) for each in itertools.product((False, True), repeat=2))


def fuse(model: PreTrainedModel) -> None:
    """Compute norms, RoPE and gated MLPs of a model's decoder by fused functions.

    Args:
        model: changed in place, before its MLPs are tiled and its layers checkpointed. Modules
            that compute something else are left to transformers.
    """
    base: Any = model.base_model
    config: Any = model.config
    activation = str(getattr(config, "hidden_activation", None) or config.hidden_act)
    for layer in base.layers:
        readers = _feed_linears(layer)
        for module in layer.modules():
            _fuse_norm(module, feeds_linears=any(module is norm for norm in readers))
            fuse_mlp(module, activation)
        _fuse_rope(layer.self_attn)
    _fuse_norm(base.norm, feeds_linears=False)


def _feed_linears(layer: Any) -> list[Any]:
    """Return the norms of a layer whose outputs only linear layers read.

    OLMo has none: it normalises outputs. Experts sum their outputs in their input's type.
    """
    if not hasattr(layer, "input_layernorm"):
        return []
    second = getattr(layer, "post_attention_layernorm", None)
    second = getattr(layer, "pre_feedforward_layernorm", second)
    has_experts = any(weight.ndim == 3 for weight in layer.mlp.parameters())
    return [layer.input_layernorm] if has_experts else [layer.input_layernorm, second]


# --- Norms ----------------------------------------------------------------------------------------


def _fuse_norm(module: Any, *, feeds_linears: bool) -> None:
    kind: Any = type(module)
    formula = formula_of(kind)
    if formula is None:
        return
    eps = getattr(module, "variance_epsilon", None)
    eps = float(module.eps if eps is None else eps)
    module.forward = functools.partial(_norm, module, eps, formula, feeds_linears)


@functools.cache
def formula_of(kind: Any) -> Formula | None:
    """Return the formula that a class of norms computes, bit for bit; None if it is another.

    Its forward runs on a few values in float32 and in bfloat16, where the formulas differ.
    """
    if not kind.__name__.endswith("Norm"):
        return None
    generator = torch.Generator().manual_seed(0)
    weight_D = torch.randn(16, generator=generator)
    norm = types.SimpleNamespace(weight=weight_D, variance_epsilon=1e-5, eps=1e-5)
    norm._norm = functools.partial(getattr(kind, "_norm", operator.is_), norm)
    hidden_MD = torch.randn(32, 16, generator=generator)
    inputs = (hidden_MD, hidden_MD.bfloat16())
    try:
        expected = [kind.forward(norm, each) for each in inputs]
    except (AttributeError, TypeError, ValueError):
        return None  # It has other parts.
    for formula in FORMULAS:
        dtypes = [torch.promote_types(x.dtype, weight_D.dtype) for x in inputs]
        found = [
            normalise(x, weight_D, 1e-5, formula, dtype if formula.rounds_first else x.dtype)[0]
            for x, dtype in zip(inputs, dtypes, strict=True)
        ]
        if all(
            a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True)
        ):
            return formula
    return None


def _norm(module: Any, eps: float, formula: Formula, feeds_linears: bool, hidden: Tensor) -> Tensor:
    dtype = autocast_type(hidden) if feeds_linears else None
    if dtype is None:
        dtype = hidden.dtype
        if formula.rounds_first:
            dtype = torch.promote_types(dtype, module.weight.dtype)
    # Also called without gradients: nothing is saved then.
    output: Tensor = _Norm.apply(hidden, module.weight, eps, formula, dtype)  # type: ignore[no-untyped-call]
    return output


def normalise(
    hidden_MD: Tensor, weight_D: Tensor, eps: float, formula: Formula, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the scaled norm [M, D] in `dtype` and 1 / root mean square [M, 1] in float32."""
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
        kernel = compiling.fastest(normalise, hidden)
        output_MD, scale_M1 = kernel(hidden_MD, weight_D.detach(), eps, formula, dtype)
        ctx.formula = formula
        ctx.save_for_backward(hidden, weight_D, scale_M1)
        return torch.ops.aten._unsafe_view(output_MD, hidden.shape)  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, weight_D, scale_M1 = ctx.saved_tensors
        hidden_MD, grad_MD = hidden.detach().flatten(0, -2), grad.flatten(0, -2)
        kernel = compiling.fastest(normalise_backward, hidden)
        hidden_grad_MD, weight_grad_D = kernel(
            grad_MD, hidden_MD, weight_D.detach(), scale_M1, ctx.formula
        )
        if not ctx.needs_input_grad[1]:
            weight_grad_D = None
        return hidden_grad_MD.view(hidden.shape), weight_grad_D, None, None, None


# --- RoPE -----------------------------------------------------------------------------------------


def _fuse_rope(attention: Any) -> None:
    """Make an attention layer call `rotated` for RoPE, and cast its input once."""
    forward = type(attention).forward
    if ROPE_NAME not in forward.__code__.co_names or not _turns_halves(
        forward.__globals__[ROPE_NAME]
    ):
        log.warning(
            "%s does not rotate halves by %s: RoPE is not fused",
            type(attention).__name__,
            ROPE_NAME,
        )
        return
    # The same code with its own globals: transformers' module stays unchanged for other models.
    own = types.FunctionType(
        forward.__code__,
        {**forward.__globals__, ROPE_NAME: rotated},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    own.__kwdefaults__ = forward.__kwdefaults__
    attention.forward = functools.partial(_attention, types.MethodType(own, attention))


@functools.cache
def _turns_halves(rotate: Callable[..., Any]) -> bool:
    """Return whether a model's own function computes `rotated`; others rotate neighbours."""
    generator = torch.Generator().manual_seed(0)
    query_BHTd = torch.randn(1, 2, 3, 16, generator=generator)
    for num_turned in (16, 8):
        angles_BTn = torch.randn(1, 3, num_turned // 2, generator=generator).repeat(1, 1, 2)
        tensors = (query_BHTd, query_BHTd, angles_BTn.cos(), angles_BTn.sin())
        try:
            theirs = rotate(*tensors)
        except RuntimeError:
            # A function for whole heads refuses angles of a part.
            return num_turned < 16
        if any(not torch.equal(a, b) for a, b in zip(theirs, rotated(*tensors), strict=True)):
            return False
    return True


def _attention(
    forward: Callable[..., Any], hidden_states: Tensor, *args: Any, **kwargs: Any
) -> Any:
    return forward(rounded(hidden_states), *args, **kwargs)


def rotated(
    query_BHTd: Tensor, key_BHTd: Tensor, cos_BTn: Tensor, sin_BTn: Tensor, unsqueeze_dim: int = 1
) -> list[Tensor]:
    """Rotate queries and keys by their positions; replaces transformers' function.

    Returns:
        Both in the autocast dtype, to which attention would cast them, or without autocast in the
        wider of their dtype and that of the angles.
    """
    cos, sin = cos_BTn.unsqueeze(unsqueeze_dim), sin_BTn.unsqueeze(unsqueeze_dim)
    return [
        _Turn.apply(x, cos, sin, autocast_type(x) or torch.promote_types(x.dtype, cos.dtype))  # type: ignore[no-untyped-call]
        for x in (query_BHTd, key_BHTd)
    ]


def turn(x_BHTd: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """Rotate the first n dimensions of x_BHTd; return the result in `dtype`."""
    num_turned = cos.shape[-1]
    part = x_BHTd[..., :num_turned]
    first, second = part.chunk(2, dim=-1)
    result = (part * cos) + (torch.cat((-second, first), dim=-1) * sin)
    if num_turned < x_BHTd.shape[-1]:
        result = torch.cat((result, x_BHTd[..., num_turned:]), dim=-1)
    return result.to(dtype)


def turn_backward(grad_BHTd: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient of x_BHTd in `dtype`."""
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
        return compiling.fastest(turn, x_BHTd)(x_BHTd.detach(), cos, sin, dtype)  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHTd: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        grad = compiling.fastest(turn_backward, grad_BHTd)(grad_BHTd, cos, sin, ctx.dtype)
        return grad, None, None, None
