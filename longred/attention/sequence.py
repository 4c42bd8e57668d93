"""Rows whose tokens are divided over processes: for the attention the heads are divided instead.

Source: DeepSpeed-Ulysses, arXiv 2309.14509. Shapes: B rows, T tokens of whole rows, t of this
process, H heads, n of this process, d head dimension.
"""

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard


def to_heads(x_BHtd: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return some heads of all tokens [B, n, T, d] for all heads of some tokens."""
    return _exchanged(x_BHtd, mesh, held=2, wanted=1)


def to_tokens(x_BTnd: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return all heads of some tokens [B, t, H, d] for some heads of all tokens."""
    return _exchanged(x_BTnd, mesh, held=2, wanted=1)


def _exchanged(x: Tensor, mesh: DeviceMesh, *, held: int, wanted: int) -> Tensor:
    """Divide another dimension than the one that is divided now."""
    divided = DTensor.from_local(x, mesh, [Shard(held)], run_check=False)
    exchanged: Tensor = divided.redistribute(placements=[Shard(wanted)]).to_local()
    return exchanged
