"""Attention by torch alone: its fused kernels, and an exact path for soft-capped logits.

Shapes: B rows, T tokens, H query heads, h key heads (h divides H), g = H / h, d head dimension,
Q queries of a block, K keys that it can see.
"""

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longred.attention.documents import Bounds, Documents, whole_rows
from longred.attention.kernels import CallKind, capability_of, using_kernels
from longred.attention.varlen import attend_varlen, supports

BLOCK_LOGITS = 2**24
"""Logits that the exact path holds at once, over rows and heads."""


class Rules(NamedTuple):
    """How one layer attends; causal always.

    Attributes:
        scale: of the logits; 1/sqrt(d) if None.
        dropout: of the attention probabilities.
        window: number of latest keys that a query sees, its own included; None sees all.
        softcap: logits x become softcap * tanh(x / softcap), after scaling; None leaves them.
        documents: no query sees another document's keys; None where rows are whole.
    """

    scale: float | None = None
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None
    documents: Documents | None = None


def attend_sdpa(query_BHTd: Tensor, key_BhTd: Tensor, value_BhTd: Tensor, rules: Rules) -> Tensor:
    """Attend with torch's kernels, or exactly where logits are soft-capped, which none of them do.

    Returns:
        The heads' outputs [B, T, H, d].
    """
    tensors = (query_BHTd, key_BhTd, value_BhTd)
    if _takes_varlen(*tensors, rules):
        rows, _, length, _ = key_BhTd.shape
        documents = rules.documents or whole_rows(rows, length, key_BhTd.device)
        return attend_varlen(*tensors, documents, scale=rules.scale, window=rules.window)
    if rules.documents is None:
        output_BHTd = _causal(*tensors, rules, "rows")
    else:
        output_BHTd = _by_document(*tensors, rules.documents.bounds, rules)
    return output_BHTd.transpose(1, 2)


def _takes_varlen(query_BHTd: Tensor, key_BhTd: Tensor, value_BhTd: Tensor, rules: Rules) -> bool:
    """Return whether there are documents or a window, and torch's one call for them can serve."""
    num_keys, device = key_BhTd.shape[2], value_BhTd.device
    is_whole = rules.documents is None and (rules.window is None or rules.window >= num_keys)
    if is_whole or rules.softcap is not None or rules.dropout or query_BHTd.shape[2] != num_keys:
        return False
    d, value_d = query_BHTd.shape[3], value_BhTd.shape[3]
    return d == value_d and supports(device, capability_of(device), value_BhTd.dtype, d)


def _by_document(
    query_BHTd: Tensor,
    key_BhTd: Tensor,
    value_BhTd: Tensor,
    documents: tuple[Bounds, ...],
    rules: Rules,
) -> Tensor:
    """Attend document by document, which costs less than one mask over whole rows.

    Tensors are split, not sliced: the backward pass of a split is one concatenation, that of a
    slice a gradient of the whole tensor, which is then added to the others.
    """
    groups = [(bounds, len(list(same))) for bounds, same in itertools.groupby(documents)]
    counts = [count for _, count in groups]
    queries, keys, values = (torch.split(x, counts) for x in (query_BHTd, key_BhTd, value_BhTd))
    rows = []
    for (bounds, _), *group in zip(groups, queries, keys, values, strict=True):
        lengths = [end - start for start, end in bounds]
        alone = zip(*(torch.split(x, lengths, dim=2) for x in group), strict=True)
        parts = [_causal(q, k, v, rules, "documents") for q, k, v in alone]
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows)


def _causal(
    query_BHTd: Tensor, key_BhTd: Tensor, value_BhTd: Tensor, rules: Rules, kind: CallKind
) -> Tensor:
    num_queries, num_keys = query_BHTd.shape[2], key_BhTd.shape[2]
    if rules.softcap is not None:
        return attend_exactly(query_BHTd, key_BhTd, value_BhTd, rules)
    window = rules.window
    settings: dict[str, Any] = {"scale": rules.scale, "dropout_p": rules.dropout}
    if window is None or window >= num_keys:
        if num_queries in (1, num_keys):
            kind = kind if num_queries == num_keys else "decoding"
            with using_kernels(query_BHTd.device, kind):
                return _whole(query_BHTd, key_BhTd, value_BhTd, settings)
        window = num_keys
    with using_kernels(query_BHTd.device, "masked"):
        return _windowed(query_BHTd, key_BhTd, value_BhTd, window, settings)


def _whole(
    query_BHTd: Tensor, key_BhTd: Tensor, value_BhTd: Tensor, settings: dict[str, Any]
) -> Tensor:
    settings = {**settings, "is_causal": query_BHTd.shape[2] > 1, "enable_gqa": True}
    if _is_slow_in_bf16(value_BhTd):
        with torch.autocast("cpu", enabled=False):
            tensors = (query_BHTd.float(), key_BhTd.float(), value_BhTd.float())
            output_BHTd = F.scaled_dot_product_attention(*tensors, **settings)
        return output_BHTd.to(value_BhTd.dtype)
    if value_BhTd.device.type == "cuda" and value_BhTd.dtype == torch.float32:
        # The one kernel that is fused in fp32 takes equal numbers of heads only.
        repeats = query_BHTd.shape[1] // key_BhTd.shape[1]
        key_BhTd, value_BhTd = (x.repeat_interleave(repeats, dim=1) for x in (key_BhTd, value_BhTd))
        settings["enable_gqa"] = False
    return F.scaled_dot_product_attention(query_BHTd, key_BhTd, value_BhTd, **settings)


def _is_slow_in_bf16(value_BhTd: Tensor) -> bool:
    """Return whether torch's CPU kernel takes longer in bf16 than in fp32, as on short rows."""
    return (
        value_BhTd.device.type == "cpu"
        and value_BhTd.dtype == torch.bfloat16
        and value_BhTd.shape[2] < 512
    )


def _windowed(
    query_BHTd: Tensor, key_BhTd: Tensor, value_BhTd: Tensor, window: int, settings: dict[str, Any]
) -> Tensor:
    """Attend to the latest `window` keys by blocks of queries, so that masks stay small."""
    num_queries, num_keys = query_BHTd.shape[2], key_BhTd.shape[2]
    repeats = query_BHTd.shape[1] // key_BhTd.shape[1]
    key_BHTd, value_BHTd = (x.repeat_interleave(repeats, dim=1) for x in (key_BhTd, value_BhTd))
    past = num_keys - num_queries
    parts = []
    for start, query_BHQd in zip(
        range(0, num_queries, window), torch.split(query_BHTd, window, dim=2), strict=True
    ):
        end = min(start + window, num_queries)
        low, high = max(0, past + start - window + 1), past + end
        parts.append(
            F.scaled_dot_product_attention(
                query_BHQd,
                key_BHTd[:, :, low:high],
                value_BHTd[:, :, low:high],
                attn_mask=_seen(past + start, low, high, window, query_BHTd.device),
                **settings,
            )
        )
    return torch.cat(parts, dim=2)


def _seen(first: int, low: int, high: int, window: int, device: torch.device) -> Tensor:
    """Return which of the keys low…high-1 the queries at the places first…high-1 see."""
    place_T = torch.arange(low, high, device=device)
    behind_QK = place_T[first - low :, None] - place_T[None, :]
    return (behind_QK >= 0) & (behind_QK < window)


def attend_exactly(
    query_BHTd: Tensor, key_BhTd: Tensor, value_BhTd: Tensor, rules: Rules
) -> Tensor:
    """Attend by the formula, in fp32 or better, queries block by block.

    Each block is computed again in the backward pass, so that memory grows with T and not with its
    square. Documents are the caller's business.

    Returns:
        The heads' outputs [B, H, T, d].
    """
    rows, num_heads, num_queries, _ = query_BHTd.shape
    num_keys = key_BhTd.shape[2]
    window = num_keys if rules.window is None else rules.window
    past = num_keys - num_queries
    size = max(1, BLOCK_LOGITS // (rows * num_heads * num_keys))
    parts = []
    for start in range(0, num_queries, size):
        end = min(start + size, num_queries)
        low, high = max(0, past + start - window + 1), past + end
        block = (
            query_BHTd[:, :, start:end],
            key_BhTd[:, :, low:high],
            value_BhTd[:, :, low:high],
            _seen(past + start, low, high, window, query_BHTd.device),
            rules,
        )
        if torch.is_grad_enabled() and size < num_queries:
            parts.append(checkpoint(_exact_block, *block, use_reentrant=False))
        else:
            parts.append(_exact_block(*block))
    return torch.cat(parts, dim=2)


def _exact_block(
    query_BHQd: Tensor, key_BhKd: Tensor, value_BhKd: Tensor, seen_QK: Tensor, rules: Rules
) -> Tensor:
    rows, _, num_queries, head_dim = query_BHQd.shape
    grouped = (rows, key_BhKd.shape[1], -1, num_queries, head_dim)
    scale = head_dim**-0.5 if rules.scale is None else rules.scale
    precise = torch.promote_types(value_BhKd.dtype, torch.float32)
    with torch.autocast(query_BHQd.device.type, enabled=False):
        query_BhgQd = query_BHQd.to(precise).reshape(grouped) * scale
        logits_BhgQK = query_BhgQd @ key_BhKd.to(precise).unsqueeze(2).transpose(-1, -2)
        if rules.softcap is not None:
            logits_BhgQK = rules.softcap * torch.tanh(logits_BhgQK / rules.softcap)
        probs_BhgQK = logits_BhgQK.masked_fill(~seen_QK, float("-inf")).softmax(dim=-1)
        probs_BhgQK = F.dropout(probs_BhgQK, rules.dropout)
        output_BhgQd = probs_BhgQK @ value_BhKd.to(precise).unsqueeze(2)
    return output_BhgQd.flatten(1, 2).to(value_BhKd.dtype)
