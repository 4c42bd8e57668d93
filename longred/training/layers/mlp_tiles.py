"""MLPs computed some tokens at a time: their inner activations, the widest of a model, stay small.

Shapes: M tokens (rows laid end to end), D hidden dimension, F of the MLP's inside.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longred.objectives.precision import at_least_fp32
from longred.training.layers.compiling import compiled
from longred.training.layers.masters import Kept, save_first, without_output

Forward = Callable[[Tensor], Tensor]


def tile_mlps(model: PreTrainedModel, tile_tokens: int, *, is_compiled: bool = False) -> None:
    """Compute every decoder layer's MLP at most `tile_tokens` tokens at a time.

    Each tile is computed again in the backward pass; only the MLP's input is held, or, in a
    checkpointed layer, not even that, and then nothing is computed more often than without tiles.
    The last product, whose output no gradient needs, is not computed again.
    Weight gradients are summed over tiles in float32 at least, whatever type they are gathered in.

    Args:
        model: changed in place.
        tile_tokens: 0 leaves the model as it is.
        is_compiled: whether the tiles are compiled, as the layers around them are.
    """
    if not tile_tokens:
        return
    base: Any = model.base_model
    for layer in base.layers:
        forward = layer.mlp.forward
        if is_compiled:
            forward = functools.partial(compiled(type(layer.mlp).forward), layer.mlp)
        # What a compiled tile needs for its gradient is the compiler's to say.
        last = None if is_compiled else _plain_linear(layer.mlp.down_proj)
        layer.mlp.forward = functools.partial(_tiled, layer.mlp, forward, last, tile_tokens)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _tiled(
    mlp: nn.Module,
    forward: Forward,
    last: nn.Linear | None,
    tile_tokens: int,
    hidden_BTD: Tensor,
) -> Tensor:
    hidden_MD = hidden_BTD.flatten(0, -2)
    if hidden_MD.shape[0] <= tile_tokens:
        return forward(hidden_BTD)
    weights = [weight for weight in mlp.parameters() if weight.requires_grad]
    if not (torch.is_grad_enabled() and (weights or hidden_MD.requires_grad)):
        return _by_tile(forward, hidden_MD, tile_tokens).view(hidden_BTD.shape)
    kept = save_first(hidden_MD, *weights)
    output_MD: Tensor = _Tiled.apply(forward, last, tile_tokens, kept, hidden_MD, *weights)  # type: ignore[no-untyped-call]
    return output_MD.view(hidden_BTD.shape)


def _plain_linear(module: nn.Module) -> nn.Linear | None:
    """Return a layer whose gradients are the textbook's: none with adapters, none in 8 bits."""
    return module if type(module) is nn.Linear else None


def _by_tile(forward: Forward, hidden_MD: Tensor, tile_tokens: int) -> Tensor:
    first, *others = _parts(hidden_MD.shape[0], tile_tokens)
    tile = forward(hidden_MD[first])
    output_MD = tile.new_empty(hidden_MD.shape)
    output_MD[first] = tile
    for part in others:
        output_MD[part] = forward(hidden_MD[part])
    return output_MD


def _parts(num_tokens: int, tile_tokens: int) -> Iterator[slice]:
    for start in range(0, num_tokens, tile_tokens):
        yield slice(start, start + tile_tokens)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        forward: Forward,
        last: nn.Linear | None,
        tile_tokens: int,
        kept: Kept,
        hidden_MD: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        ctx.forward, ctx.last, ctx.tile_tokens = forward, last, tile_tokens
        ctx.kept, ctx.weights = kept, weights
        device = hidden_MD.device.type
        ctx.autocast = functools.partial(
            torch.autocast,
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
        )
        return _by_tile(forward, hidden_MD, tile_tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (output_grad_MD,) = grads
        hidden_MD = ctx.kept.take()[0].detach()
        needs_hidden = ctx.needs_input_grad[4]
        hidden_grad_MD = torch.empty_like(hidden_MD) if needs_hidden else None
        sums: list[Tensor | None] = [None] * len(ctx.weights)
        for part in _parts(hidden_MD.shape[0], ctx.tile_tokens):
            tile = hidden_MD[part].requires_grad_(needs_hidden)
            with torch.enable_grad(), ctx.autocast(), without_output(ctx.last):
                output = ctx.forward(tile)
            inputs = [*ctx.weights, *([tile] if needs_hidden else [])]
            found = torch.autograd.grad(output, inputs, output_grad_MD[part])
            if hidden_grad_MD is not None:
                hidden_grad_MD[part] = found[-1]
            for i, grad in enumerate(found[: len(sums)]):
                total = sums[i]
                sums[i] = grad.to(at_least_fp32(grad.dtype)) if total is None else total.add_(grad)
        summed = (
            None if total is None else total.to(weight.dtype)
            for total, weight in zip(sums, ctx.weights, strict=True)
        )
        return None, None, None, None, hidden_grad_MD, *summed
