"""How far the student's self-relations (Q-Q, K-K, V-V) are from the teacher's, in O(T) memory.

A relation of a layer is the row-wise softmax of X X^T / sqrt(d) over the tokens that each token
sees, X being the queries or keys after RoPE, or the values. Source: arXiv 2604.00004, with two
readings of our own: each relation is averaged over its own heads, so that grouped keys and values
count as much as queries (the same number where there are no groups), and the teacher's text is
never longer than its window.

Shapes: B rows, T tokens, H heads of one relation, d head dimension, N decoder layers, Q and K
tokens of a tile.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from longred.objectives.precision import at_least_fp32


class Attended(Protocol):
    """What a layer attends with: queries and keys after RoPE, and values."""

    @property
    def query_BHTd(self) -> Tensor:
        """Queries."""

    @property
    def key_BhTd(self) -> Tensor:
        """Keys, not repeated."""

    @property
    def value_BhTd(self) -> Tensor:
        """Values, not repeated."""

    @property
    def sliding_window(self) -> int | None:
        """Number of latest tokens that a token sees."""


def attention_distill_loss(
    student: Mapping[int, Attended],
    teacher: Mapping[int, Attended],
    *,
    document_ids_BT: Tensor | None = None,
) -> Tensor:
    """Return the mean over layers of KL(teacher || student) summed over Q-Q, K-K and V-V, nats.

    Args:
        student: what each decoder layer attends with.
        teacher: the same layers of the teacher.
        document_ids_BT: ids whose runs are documents.

    Raises:
        ValueError: the two hold different layers, or none.
    """
    if not student or student.keys() != teacher.keys():
        raise ValueError(
            "student and teacher must hold the same layers, at least one: "
            f"{sorted(student)} and {sorted(teacher)}"
        )
    losses = []
    for layer in sorted(student):
        ours, theirs = student[layer], teacher[layer]
        for student_BHTd, teacher_BHTd in (
            (ours.query_BHTd, theirs.query_BHTd),
            (ours.key_BhTd, theirs.key_BhTd),
            (ours.value_BhTd, theirs.value_BhTd),
        ):
            kl_BHT = relation_kl(
                student_BHTd,
                teacher_BHTd,
                document_ids_BT=document_ids_BT,
                sliding_window=ours.sliding_window,
            )
            losses.append(kl_BHT.mean())
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

    Tile by tile with running maxima, and once more in the backward pass: neither direction holds a
    T x T matrix. Only the student gets a gradient. Computed in fp32 (fp64 for fp64 inputs).

    Args:
        student_BHTd: queries, keys or values.
        teacher_BHTd: the same of the teacher.
        document_ids_BT: ids whose runs are documents; no token sees another document.
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
    seen = _Seen(student_BHTd.shape[2], document_ids_BT, sliding_window, block_tokens)
    kl_BHT: Tensor = _RelationKl.apply(student_BHTd, teacher_BHTd.detach(), seen)  # type: ignore[no-untyped-call]
    return kl_BHT


class _Tile(NamedTuple):
    """Tokens whose rows are taken, tokens they look at, and whether all of those are seen."""

    rows: slice
    columns: slice
    seen: Tensor | None


class _Seen:
    """Which tokens a token sees, tile by tile: those up to itself, of its document and window."""

    def __init__(
        self, length: int, document_ids_BT: Tensor | None, window: int | None, block: int
    ) -> None:
        self.length, self.window, self.block = length, window, block
        self.document_BT: Tensor | None = None
        self.first_seen = [0] * length
        if document_ids_BT is not None:
            starts_BT = document_ids_BT.diff(dim=1, prepend=document_ids_BT[:, :1] - 1) != 0
            self.document_BT = starts_BT.cumsum(dim=1)
            place_T = torch.arange(length, device=document_ids_BT.device)
            begin_BT = torch.where(starts_BT, place_T, 0).cummax(dim=1).values
            self.first_seen = begin_BT.amin(dim=0).tolist()

    def row_blocks(self) -> list[slice]:
        return [
            slice(start, min(start + self.block, self.length))
            for start in range(0, self.length, self.block)
        ]

    def tiles(self, rows: slice, device: torch.device) -> Iterator[_Tile]:
        """Yield the tiles of a block of rows, that on the diagonal first: no row of it is empty."""
        lowest = self.first_seen[rows.start]
        if self.window is not None:
            lowest = max(lowest, rows.start - self.window + 1)
        for start in range(rows.start, -1, -self.block):
            columns = slice(start, min(start + self.block, self.length))
            if columns.stop <= lowest:
                return
            yield _Tile(rows, columns, self._mask(rows, columns, device))

    def _mask(self, rows: slice, columns: slice, device: torch.device) -> Tensor | None:
        window = self.length if self.window is None else self.window
        within = rows.start != columns.start and rows.stop - columns.start <= window
        if within and self.document_BT is None:
            return None
        row_Q1 = torch.arange(rows.start, rows.stop, device=device)[:, None]
        behind_QK = row_Q1 - torch.arange(columns.start, columns.stop, device=device)
        seen_QK = (behind_QK >= 0) & (behind_QK < window)
        if self.document_BT is None:
            return seen_QK
        same_BQK = self.document_BT[:, rows, None] == self.document_BT[:, None, columns]
        return (same_BQK & seen_QK)[:, None]


class _RelationKl(torch.autograd.Function):
    """The KL of every row in one pass over tiles; gradients by recomputing them."""

    @staticmethod
    def forward(ctx: Any, student_BHTd: Tensor, teacher_BHTd: Tensor, seen: _Seen) -> Tensor:
        """Return kl_BHT, keeping the inputs and two numbers a row."""
        precise = at_least_fp32(student_BHTd.dtype)
        parts = []
        with torch.autocast(student_BHTd.device.type, enabled=False):
            student, teacher = _scaled(student_BHTd, precise), _scaled(teacher_BHTd, precise)
            for rows in seen.row_blocks():
                parts.append(_row_block(student, teacher, seen, rows))
        kl_BHT, student_lse_BHT, teacher_lse_BHT = (
            torch.cat(part, dim=-1) for part in zip(*parts, strict=True)
        )
        ctx.seen = seen
        ctx.save_for_backward(student_BHTd, teacher_BHTd, student_lse_BHT, teacher_lse_BHT)
        return kl_BHT

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """Recompute every tile: the gradient of its logits is (p_student - p_teacher) * grad."""
        (grad_BHT,) = grad_outputs
        student_BHTd, teacher_BHTd, student_lse_BHT, teacher_lse_BHT = ctx.saved_tensors
        precise, seen = grad_BHT.dtype, ctx.seen
        with torch.autocast(student_BHTd.device.type, enabled=False):
            student, teacher = _scaled(student_BHTd, precise), _scaled(teacher_BHTd, precise)
            grad_BHTd = torch.zeros_like(student)
            for rows in seen.row_blocks():
                for tile in seen.tiles(rows, student.device):
                    logits_grad = (
                        _probs(student, student_lse_BHT, tile)
                        - _probs(teacher, teacher_lse_BHT, tile)
                    ) * grad_BHT[..., rows, None]
                    grad_BHTd[:, :, rows] += logits_grad @ student[:, :, tile.columns]
                    grad_BHTd[:, :, tile.columns] += (
                        logits_grad.transpose(-1, -2) @ student[:, :, rows]
                    )
            grad_BHTd *= student_BHTd.shape[-1] ** -0.25
        return grad_BHTd.to(student_BHTd.dtype), None, None


def _scaled(x_BHTd: Tensor, precise: torch.dtype) -> Tensor:
    """Return d^(-1/4) x, so that products of two of them are scaled logits."""
    scaled: Tensor = x_BHTd.to(precise) * x_BHTd.shape[-1] ** -0.25
    return scaled


def _logits(x_BHTd: Tensor, tile: _Tile) -> Tensor:
    logits_BHQK = x_BHTd[:, :, tile.rows] @ x_BHTd[:, :, tile.columns].transpose(-1, -2)
    if tile.seen is None:
        return logits_BHQK
    return logits_BHQK.masked_fill_(~tile.seen, float("-inf"))


def _probs(x_BHTd: Tensor, lse_BHT: Tensor, tile: _Tile) -> Tensor:
    return _logits(x_BHTd, tile).sub_(lse_BHT[..., tile.rows, None]).exp_()


def _row_block(
    student: Tensor, teacher: Tensor, seen: _Seen, rows: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the KL and both log-sum-exps of a block of rows.

    With t and s the logits: KL = sum p_t (t - s) - LSE_t + LSE_s. The sums run over tiles, rescaled
    whenever a tile raises a row's maximum.
    """
    shape = (*student.shape[:2], rows.stop - rows.start)
    student_max, teacher_max = (student.new_full(shape, float("-inf")) for _ in range(2))
    student_sum, teacher_sum, excess = (student.new_zeros(shape) for _ in range(3))
    for tile in seen.tiles(rows, student.device):
        t, s = _logits(teacher, tile), _logits(student, tile)
        new_max = torch.maximum(student_max, s.amax(dim=-1))
        student_sum = student_sum * (student_max - new_max).exp()
        student_sum = student_sum + (s - new_max[..., None]).exp().sum(dim=-1)
        student_max = new_max
        new_max = torch.maximum(teacher_max, t.amax(dim=-1))
        shrink = (teacher_max - new_max).exp()
        weight = (t - new_max[..., None]).exp()
        difference = t - s
        if tile.seen is not None:
            # Unseen tokens are -inf in both, whose difference would be NaN.
            difference.masked_fill_(~tile.seen, 0.0)
        teacher_sum = teacher_sum * shrink + weight.sum(dim=-1)
        excess = excess * shrink + (weight * difference).sum(dim=-1)
        teacher_max = new_max
    student_lse, teacher_lse = student_max + student_sum.log(), teacher_max + teacher_sum.log()
    return excess / teacher_sum - teacher_lse + student_lse, student_lse, teacher_lse
