"""KL between the self-relations (Q-Q, K-K, V-V) of student and teacher, in O(T) memory.

A relation of a layer is the row-wise softmax of X X^T / sqrt(d) over the tokens that each token
sees; X holds the queries or keys after RoPE, or the values. Source: arXiv 2604.00004, with two
choices of our own: by default each relation is averaged over its own heads, so that grouped keys
and values count as much as queries (the same number without grouping; `heads` query is the
published code), and the teacher's text is never longer than its window.

`longred.profiling.attention_kl` streams the same KL for queries against keys. The two loops stay
separate: both sides of a relation are one tensor, scaled by d^(-1/4), summed over square tiles;
computed by the other loop, training losses and gradients would be rounded differently.

Shapes: B rows, T tokens, H heads of one relation, d head dimension, N decoder layers, Q and K
tokens of a tile.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from longred.objectives.hidden import paired_layers
from longred.objectives.precision import at_least_fp32


def attention_distill_loss(
    student: Mapping[int, Any],
    teacher: Mapping[int, Any],
    *,
    document_ids_BT: Tensor | None = None,
    heads: str = "own",
) -> Tensor:
    """Return the mean over layers of KL(teacher || student) summed over Q-Q, K-K and V-V, in nats.

    Args:
        student: `longred.attention.function.Captured` of each decoder layer.
        teacher: the same layers of the teacher.
        document_ids_BT: each run of equal ids is one document.
        heads: by which number of heads the sum over a relation's heads is divided: its `own`, or,
            as published, that of the `query` heads for all three. With h key heads for H query
            heads, the latter counts K-K and V-V h / H times.

    Raises:
        ValueError: the mappings have different layers, or none.
    """
    losses = []
    for layer in paired_layers(student, teacher):
        for name in ("query_BHTd", "key_BhTd", "value_BhTd"):
            kl_BHT = relation_kl(
                getattr(student[layer], name),
                getattr(teacher[layer], name),
                document_ids_BT=document_ids_BT,
                sliding_window=student[layer].sliding_window,
            )
            loss = kl_BHT.mean()
            if heads == "query":
                loss = loss * (kl_BHT.shape[1] / student[layer].query_BHTd.shape[1])
            losses.append(loss)
    return torch.stack(losses).sum() / len(student)


def relation_kl(
    student_BHTd: Tensor,
    teacher_BHTd: Tensor,
    *,
    document_ids_BT: Tensor | None = None,
    sliding_window: int | None = None,
    block_tokens: int = 512,
) -> Tensor:
    """Return KL(teacher's relation || student's) of every token's row, in nats.

    Computed tile by tile with running maxima and recomputed in the backward pass: neither direction
    holds a T x T matrix. Only the student gets a gradient. Computed in fp32 (fp64 for fp64 inputs).

    Args:
        student_BHTd: queries, keys or values.
        teacher_BHTd: the same tensor of the teacher.
        document_ids_BT: each run of equal ids is one document; no token sees another document.
        sliding_window: number of latest tokens that a token sees, itself included.
        block_tokens: side of a tile.

    Returns:
        kl_BHT.

    Raises:
        ValueError: the shapes differ.
    """
    if student_BHTd.shape != teacher_BHTd.shape:
        shapes = tuple(student_BHTd.shape), tuple(teacher_BHTd.shape)
        raise ValueError(f"student and teacher must have one shape: {shapes[0]} and {shapes[1]}")
    first_BT = first_seen(student_BHTd, document_ids_BT, sliding_window)
    tiles = _Tiles(first_BT, student_BHTd.shape[2], block_tokens)
    kl_BHT: Tensor = _RelationKl.apply(student_BHTd, teacher_BHTd.detach(), tiles)  # type: ignore[no-untyped-call]
    return kl_BHT


def document_starts(document_ids_BT: Tensor) -> Tensor:
    """Return the index of the first token of each token's document, int64 [B, T]."""
    index_T = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device)
    is_start_BT = document_ids_BT.diff(dim=1, prepend=document_ids_BT[:, :1]) != 0
    return torch.where(is_start_BT, index_T, 0).cummax(dim=1).values


def first_seen(
    x_BHTd: Tensor, document_ids_BT: Tensor | None, sliding_window: int | None
) -> Tensor | None:
    """Return the first token that each token sees, int32 [B, T]; None if that is always 0."""
    rows, _, length, _ = x_BHTd.shape
    is_wide = sliding_window is None or sliding_window >= length
    if document_ids_BT is None and is_wide:
        return None
    index_T = torch.arange(length, device=x_BHTd.device)
    first_BT = torch.zeros_like(index_T).expand(rows, -1)
    if document_ids_BT is not None:
        first_BT = document_starts(document_ids_BT.to(x_BHTd.device))
    if sliding_window is not None:
        first_BT = torch.maximum(first_BT, index_T - (sliding_window - 1))
    return first_BT.to(torch.int32).contiguous()


class _Tiles:
    """Square tiles of the T x T matrix in which some token sees another."""

    def __init__(self, first_BT: Tensor | None, length: int, block: int) -> None:
        self.first_BT, self.length, self.block = first_BT, length, block
        self.lowest = self.highest = [0] * length
        if first_BT is not None:
            # Copied to the host at once: the device is waited for only once.
            self.lowest, self.highest = torch.stack(first_BT.aminmax(dim=0)).tolist()

    def blocks(self) -> list[slice]:
        """Return the blocks of rows."""
        starts = range(0, self.length, self.block)
        return [slice(start, min(start + self.block, self.length)) for start in starts]

    def of_rows(self, rows: slice, device: torch.device) -> Iterator[tuple[slice, Tensor | None]]:
        """Yield the columns of each tile of a block of rows, and which logits are not seen.

        The diagonal tile comes first: each of its rows sees a token. The mask is None if all
        logits of the tile are seen.
        """
        for start in range(rows.start, -1, -self.block):
            columns = slice(start, min(start + self.block, self.length))
            if columns.stop <= self.lowest[rows.start]:
                return
            if start < rows.start and self.highest[rows.stop - 1] <= start:
                yield columns, None
                continue
            index_T = torch.arange(self.length, device=device)
            unseen = index_T[columns] > index_T[rows, None]
            if self.first_BT is not None:
                unseen = unseen | (index_T[columns] < self.first_BT[:, None, rows, None])
            yield columns, unseen


class _RelationKl(torch.autograd.Function):
    """The KL of every row in one pass over tiles; gradients by recomputing them."""

    @staticmethod
    def forward(ctx: Any, student_BHTd: Tensor, teacher_BHTd: Tensor, tiles: _Tiles) -> Tensor:
        """Return kl_BHT; save the inputs and both log-sum-exps of each row."""
        precise = at_least_fp32(student_BHTd.dtype)
        with torch.autocast(student_BHTd.device.type, enabled=False):
            student, teacher = _scaled(student_BHTd, precise), _scaled(teacher_BHTd, precise)
            parts = [_row_block(student, teacher, tiles, rows) for rows in tiles.blocks()]
        kl_BHT, student_lse_BHT, teacher_lse_BHT = (
            torch.cat(part, dim=-1) for part in zip(*parts, strict=True)
        )
        ctx.tiles = tiles
        ctx.save_for_backward(student_BHTd, teacher_BHTd, student_lse_BHT, teacher_lse_BHT)
        return kl_BHT

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """Recompute every tile: the gradient of its logits is (p_student - p_teacher) * grad."""
        (grad_BHT,) = grad_outputs
        student_BHTd, teacher_BHTd, student_lse_BHT, teacher_lse_BHT = ctx.saved_tensors
        with torch.autocast(student_BHTd.device.type, enabled=False):
            student = _scaled(student_BHTd, grad_BHT.dtype)
            teacher = _scaled(teacher_BHTd, grad_BHT.dtype)
            grad_BHTd = torch.zeros_like(student)
            for rows in ctx.tiles.blocks():
                for columns, unseen in ctx.tiles.of_rows(rows, student.device):
                    logits_grad, teacher_probs = (
                        _logits(x, rows, columns, unseen).sub_(lse_BHT[..., rows, None]).exp_()
                        for x, lse_BHT in ((student, student_lse_BHT), (teacher, teacher_lse_BHT))
                    )
                    logits_grad.sub_(teacher_probs).mul_(grad_BHT[..., rows, None])
                    del teacher_probs
                    grad_BHTd[:, :, rows] += logits_grad @ student[:, :, columns]
                    grad_BHTd[:, :, columns] += logits_grad.transpose(-1, -2) @ student[:, :, rows]
            grad_BHTd *= student_BHTd.shape[-1] ** -0.25
        return grad_BHTd.to(student_BHTd.dtype), None, None


def _scaled(x_BHTd: Tensor, precise: torch.dtype) -> Tensor:
    """Return d^(-1/4) x, so that products of two such tensors are scaled logits."""
    scaled: Tensor = x_BHTd.to(precise) * x_BHTd.shape[-1] ** -0.25
    return scaled


def _logits(x_BHTd: Tensor, rows: slice, columns: slice, unseen: Tensor | None) -> Tensor:
    logits_BHQK = x_BHTd[:, :, rows] @ x_BHTd[:, :, columns].transpose(-1, -2)
    return logits_BHQK if unseen is None else logits_BHQK.masked_fill_(unseen, float("-inf"))


def _row_block(
    student: Tensor, teacher: Tensor, tiles: _Tiles, rows: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the KL and both log-sum-exps of a block of rows.

    With teacher logits t and student logits s: KL = sum p_t (t - s) - LSE_t + LSE_s. The sums run
    over tiles and are rescaled when a tile raises a row's maximum.
    """
    shape = (*student.shape[:2], rows.stop - rows.start)
    student_max, teacher_max = (student.new_full(shape, float("-inf")) for _ in range(2))
    student_sum, teacher_sum, excess = (student.new_zeros(shape) for _ in range(3))
    for columns, unseen in tiles.of_rows(rows, student.device):
        t, s = (_logits(x, rows, columns, unseen) for x in (teacher, student))
        new_max = torch.maximum(student_max, s.amax(dim=-1))
        student_sum = student_sum * (student_max - new_max).exp()
        student_sum = student_sum + (s - new_max[..., None]).exp().sum(dim=-1)
        student_max = new_max
        new_max = torch.maximum(teacher_max, t.amax(dim=-1))
        shrink = (teacher_max - new_max).exp()
        weight = (t - new_max[..., None]).exp()
        difference = t - s
        if unseen is not None:
            # Unseen logits are -inf in both models; their difference would be NaN.
            difference.masked_fill_(unseen, 0.0)
        teacher_sum = teacher_sum * shrink + weight.sum(dim=-1)
        excess = excess * shrink + (weight * difference).sum(dim=-1)
        teacher_max = new_max
    student_lse, teacher_lse = student_max + student_sum.log(), teacher_max + teacher_sum.log()
    return excess / teacher_sum - teacher_lse + student_lse, student_lse, teacher_lse
