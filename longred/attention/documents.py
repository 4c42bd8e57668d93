"""Where documents begin and end in packed rows.

Shapes: B rows, T tokens of a row, N documents of all rows.
"""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Bounds = tuple[tuple[int, int], ...]
"""First and past-the-last token of each document of a row."""


class Documents(NamedTuple):
    """The documents of a batch, in the forms that the kernels want.

    Attributes:
        bounds: of every row.
        cu_seqlens: the same over all rows laid end to end, int32 [N + 1] from 0 to B x T.
        max_length: tokens of the longest document.
    """

    bounds: tuple[Bounds, ...]
    cu_seqlens: Tensor
    max_length: int


def document_bounds(document_ids_BT: Tensor) -> tuple[Bounds, ...] | None:
    """Return each row's documents as (start, end) pairs; None if every row is a single document.

    A document is a run of equal ids: an id that comes back later in the row starts a new document.
    """
    starts_BT = F.pad(document_ids_BT[:, 1:] != document_ids_BT[:, :-1], (1, 0), value=True)
    if int(starts_BT.sum()) == starts_BT.shape[0]:
        return None
    length = starts_BT.shape[1]
    rows = []
    for starts_T in starts_BT.cpu():
        starts = starts_T.nonzero().flatten().tolist()
        rows.append(tuple(zip(starts, [*starts[1:], length], strict=True)))
    return tuple(rows)


def find_documents(document_ids_BT: Tensor) -> Documents | None:
    """Return the documents of packed rows; None if every row is a single document."""
    bounds = document_bounds(document_ids_BT)
    if bounds is None:
        return None
    length = document_ids_BT.shape[1]
    ends = [row * length + end for row, pairs in enumerate(bounds) for _, end in pairs]
    cu_seqlens = torch.tensor([0, *ends], dtype=torch.int32, device=document_ids_BT.device)
    return Documents(bounds, cu_seqlens, max(end - start for row in bounds for start, end in row))


def ids_from_cu_seqlens(cu_seqlens: Tensor, rows: int, length: int) -> Tensor:
    """Return document_ids_BT for document ends given over all rows laid end to end.

    Raises:
        ValueError: they do not rise from 0 to B x T, or a document crosses into the next row.
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
