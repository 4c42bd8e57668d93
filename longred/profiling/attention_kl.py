"""How far the student's attention is from the teacher's, query by query.

Shapes: B rows, T tokens, H query heads, h key heads (h divides H), g = H / h, d head dimension,
Q queries of a block, K keys that it can see.
"""

import torch
from torch import Tensor

BLOCK_LOGITS = 2**24
"""Attention logits of one model held at once, over rows and heads."""


def attention_kl(
    teacher_query_BHTd: Tensor,
    teacher_key_BhTd: Tensor,
    student_query_BHTd: Tensor,
    student_key_BhTd: Tensor,
    *,
    scale: float | None = None,
    document_ids_BT: Tensor | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Return KL(teacher's attention || student's attention) of every query, in nats.

    A query sees the keys up to its own, inside its document and the sliding window. Memory grows
    with T, not with its square: queries go block by block. Computed in fp32 (fp64 for fp64 inputs);
    rounding can leave a KL near 0 slightly negative.

    Args:
        teacher_query_BHTd: queries after RoPE.
        teacher_key_BhTd: keys after RoPE, not repeated.
        student_query_BHTd: the same of the student.
        student_key_BhTd: the same of the student.
        scale: of the logits; 1/sqrt(d) if None.
        document_ids_BT: ids whose runs are documents.
        sliding_window: number of latest keys that a query sees, its own included.

    Returns:
        kl_BHT.

    Raises:
        ValueError: the shapes do not fit.
    """
    rows, num_heads, length, head_dim = teacher_query_BHTd.shape
    if student_query_BHTd.shape != teacher_query_BHTd.shape or (
        student_key_BhTd.shape != teacher_key_BhTd.shape
        or teacher_key_BhTd.shape[2:] != (length, head_dim)
        or num_heads % teacher_key_BhTd.shape[1]
    ):
        shapes = [tuple(x.shape) for x in (teacher_query_BHTd, teacher_key_BhTd)]
        raise ValueError(f"queries and keys of teacher and student do not fit: {shapes}")
    scale = head_dim**-0.5 if scale is None else scale
    document_BT = None if document_ids_BT is None else _runs(document_ids_BT)
    block = max(1, BLOCK_LOGITS // (rows * num_heads * length))
    parts = []
    for start in range(0, length, block):
        end = min(start + block, length)
        first = 0 if sliding_window is None else max(0, start - sliding_window + 1)
        seen_B11QK = _seen(start, end, first, sliding_window, document_BT, teacher_key_BhTd.device)
        log_probs = [
            _log_probs(query[:, :, start:end], key[:, :, first:end], scale, seen_B11QK)
            for query, key in (
                (teacher_query_BHTd, teacher_key_BhTd),
                (student_query_BHTd, student_key_BhTd),
            )
        ]
        teacher_BhgQK, student_BhgQK = log_probs
        kl_BhgQ = (teacher_BhgQK.exp() * (teacher_BhgQK - student_BhgQK)).sum(dim=-1)
        parts.append(kl_BhgQ.flatten(1, 2))
    return torch.cat(parts, dim=-1)


def _log_probs(query_BHQd: Tensor, key_BhKd: Tensor, scale: float, seen_B11QK: Tensor) -> Tensor:
    precise = torch.promote_types(query_BHQd.dtype, torch.float32)
    rows, num_heads, _, _ = query_BHQd.shape
    grouped = (rows, key_BhKd.shape[1], num_heads // key_BhKd.shape[1], *query_BHQd.shape[2:])
    query_BhgQd = query_BHQd.to(precise).reshape(grouped)
    logits_BhgQK = query_BhgQd @ key_BhKd.to(precise).unsqueeze(2).transpose(-1, -2)
    logits_BhgQK = (logits_BhgQK * scale).masked_fill(~seen_B11QK, float("-inf"))
    # Unseen keys get 0 in both models, not -inf, whose difference would be NaN.
    return logits_BhgQK.log_softmax(dim=-1).masked_fill(~seen_B11QK, 0.0)


def _seen(
    start: int,
    end: int,
    first: int,
    window: int | None,
    document_BT: Tensor | None,
    device: torch.device,
) -> Tensor:
    place = torch.arange(end, device=device)
    behind_QK = place[start:end, None] - place[None, first:end]
    seen_QK = behind_QK >= 0
    if window is not None:
        seen_QK &= behind_QK < window
    if document_BT is None:
        return seen_QK[None, None, None]
    same_BQK = document_BT[:, start:end, None] == document_BT[:, None, first:end]
    return (same_BQK & seen_QK)[:, None, None]


def _runs(document_ids_BT: Tensor) -> Tensor:
    """Number the runs of equal ids in every row."""
    return (document_ids_BT.diff(dim=1, prepend=document_ids_BT[:, :1]) != 0).cumsum(dim=1)
