"""Where documents begin and end in packed rows.

Shapes: B rows, T tokens of a row, N documents of all rows.
"""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Bounds = tuple[tuple[int, int], ...]
"""(start, end) of each document of a row; end is exclusive."""


class Documents(NamedTuple):
    """The documents of a batch, in the forms that the kernels need.

    Attributes:
        bounds: bounds of every row.
        cu_seqlens: the same over all rows laid end to end, int32 [N + 1] from 0 to B x T.
        max_length: number of tokens of the longest document.
    """

    bounds: tuple[Bounds, ...]
    cu_seqlens: Tensor
    max_length: int


def document_bounds(document_ids_BT: Tensor) -> tuple[Bounds, ...] | None:
    """Return each row's documents as (start, end) pairs; None if every row is a single document.

    A document is a run of equal ids: an id that comes back later in the row starts a new document.
    Ids on a GPU cost one synchronisation; ids on the host cost none.
    """
    changes_BT = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    starts_BT = F.pad(changes_BT, (1, 0), value=True).cpu()
    length = starts_BT.shape[1]
    rows = []
    for starts_T in starts_BT:
        starts = starts_T.nonzero().flatten().tolist()
        rows.append(tuple(zip(starts, [*starts[1:], length], strict=True)))
    return tuple(rows) if any(len(bounds) > 1 for bounds in rows) else None


def find_documents(document_ids_BT: Tensor, device: torch.device | None = None) -> Documents | None:
    """Return the documents of packed rows; None if every row is a single document.

    Args:
        document_ids_BT: each run of equal ids is one document.
        device: device of `cu_seqlens`; that of the ids if None.
    """
    bounds = document_bounds(document_ids_BT)
    if bounds is None:
        return None
    length, device = document_ids_BT.shape[1], device or document_ids_BT.device
    ends = [row * length + end for row, pairs in enumerate(bounds) for _, end in pairs]
    # Pinned memory, so that the copy does not wait for the GPU's pending work.
    on_host = torch.tensor([0, *ends], dtype=torch.int32, pin_memory=device.type == "cuda")
    longest = max(end - start for row in bounds for start, end in row)
    return Documents(bounds, on_host.to(device, non_blocking=True), longest)


def whole_rows(rows: int, length: int, device: torch.device) -> Documents:
    """Return the documents of rows that are one document each."""
    ends = torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=device)
    return Documents((((0, length),),) * rows, ends, length)


def ids_from_cu_seqlens(cu_seqlens: Tensor, rows: int, length: int) -> Tensor:
    """Return document_ids_BT for cu_seqlens over all rows laid end to end.

    Raises:
        ValueError: the ends do not rise from 0 to B x T, or a document crosses into the next row.
    """
    ends = cu_seqlens.tolist()
    rises = all(a < b for a, b in itertools.pairwise(ends))
    if not rises or ends[0] != 0 or ends[-1] != rows * length:
        raise ValueError(f"cu_seqlens must rise from 0 to {rows * length}, got {ends}")
    missing = sorted({row * length for row in range(rows)} - set(ends))
    if missing:
        raise ValueError(
            f"cu_seqlens: a document crosses token {missing[0]}, where a row of {length} ends"
        )
    counts = torch.diff(cu_seqlens).long()
    ids = torch.arange(len(counts), device=cu_seqlens.device)
    return torch.repeat_interleave(ids, counts).view(rows, length)
