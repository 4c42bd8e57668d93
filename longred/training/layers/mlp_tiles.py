"""MLPs computed in tiles of tokens: their inner activations, the widest of a model, stay small.

Shapes: M tokens (rows laid end to end), D hidden dimension, F of the MLP's inside.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longred.objectives.precision import at_least_fp32, autocast_type
from longred.training.layers.compiling import compiled
from longred.training.layers.masters import Saved, save_first, without_output

Forward = Callable[[Tensor], Tensor]


class _Tiles(NamedTuple):
    """How an MLP is tiled.

    Attributes:
        forward: computes the MLP of one tile.
        last: its last linear layer, if no gradient needs that layer's output; else None.
        num_tokens: number of tokens of a tile.
    """

    forward: Forward
    last: nn.Linear | None
    num_tokens: int

    def of(self, hidden_MD: Tensor) -> list[slice]:
        starts = range(0, hidden_MD.shape[0], self.num_tokens)
        return [slice(start, start + self.num_tokens) for start in starts]


def tile_mlps(model: PreTrainedModel, tile_tokens: int, *, is_compiled: bool = False) -> None:
    """Compute every decoder layer's MLP at most `tile_tokens` tokens at a time.

    Each tile is recomputed in the backward pass, and only the MLP's input is held. In a
    checkpointed layer not even the input is held, and nothing is recomputed more often than without
    tiles. The last product, whose output no gradient needs, is not recomputed. Weight gradients are
    summed over tiles in float32 at least, whatever dtype they have.

    Args:
        model: changed in place.
        tile_tokens: size of a tile; 0 leaves the model unchanged.
        is_compiled: whether to compile the tiles, like the layers around them.
    """
    if not tile_tokens:
        return
    base: Any = model.base_model
    for layer in base.layers:
        mlp = layer.mlp
        forward, last = mlp.forward, None
        if is_compiled:
            forward = functools.partial(compiled(type(mlp).forward), mlp)
        elif type(getattr(mlp, "down_proj", None)) is nn.Linear:
            # With adapters or in fp8, and in a compiled tile, gradients may need the output.
            last = mlp.down_proj
        elif any(weight.ndim == 3 for weight in mlp.parameters()):
            forward = functools.partial(_as_row, forward)
        mlp.forward = functools.partial(_tiled, mlp, _Tiles(forward, last, tile_tokens))


def _as_row(forward: Forward, hidden: Tensor) -> Tensor:
    """Give experts, which take rows alone, a tile as one row."""
    return forward(hidden[None])[0] if hidden.ndim == 2 else forward(hidden)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _tiled(mlp: nn.Module, tiles: _Tiles, hidden_BTD: Tensor) -> Tensor:
    hidden_MD = hidden_BTD.flatten(0, -2)
    if hidden_MD.shape[0] <= tiles.num_tokens:
        return tiles.forward(hidden_BTD)
    weights = [weight for weight in mlp.parameters() if weight.requires_grad]
    if torch.is_grad_enabled() and (weights or hidden_MD.requires_grad):
        saved = save_first(hidden_MD, *weights)
        output_MD: Tensor = _Tiled.apply(tiles, saved, hidden_MD, *weights)  # type: ignore[no-untyped-call]
    else:
        output_MD = _by_tile(tiles, hidden_MD)
    return output_MD.view(hidden_BTD.shape)


def _by_tile(tiles: _Tiles, hidden_MD: Tensor) -> Tensor:
    first, *others = tiles.of(hidden_MD)
    tile = tiles.forward(hidden_MD[first])
    output_MD = tile.new_empty(hidden_MD.shape)
    output_MD[first] = tile
    for part in others:
        output_MD[part] = tiles.forward(hidden_MD[part])
    return output_MD


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tiles: _Tiles, saved: Saved, hidden_MD: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.tiles, ctx.saved, ctx.weights = tiles, saved, weights
        ctx.autocast_type = autocast_type(hidden_MD)
        return _by_tile(tiles, hidden_MD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (output_grad_MD,) = grads
        hidden_MD = ctx.saved()[0].detach()
        needs_hidden = ctx.needs_input_grad[2]
        hidden_grad_MD = torch.empty_like(hidden_MD) if needs_hidden else None
        sums: list[Tensor | None] = [None] * len(ctx.weights)
        device, dtype = hidden_MD.device.type, ctx.autocast_type
        for part in ctx.tiles.of(hidden_MD):
            tile = hidden_MD[part].requires_grad_(needs_hidden)
            autocast = torch.autocast(device, dtype=dtype, enabled=dtype is not None)
            with torch.enable_grad(), autocast, without_output(ctx.tiles.last):
                output = ctx.tiles.forward(tile)
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
        return None, None, hidden_grad_MD, *summed
