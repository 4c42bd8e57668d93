"""Attention by torch alone: its fused kernels, and an exact path for soft-capped logits.

On a GPU, documents and windows are one call of `torch.nn.attention.varlen`. Where that kernel
cannot serve, each document is one call of `scaled_dot_product_attention`, and a window is computed
by blocks of queries under a small mask.

Shapes: B rows, T tokens, H query heads, h key heads (h divides H), g = H / h, d head dimension,
M = B x T, Q queries of a block, K keys that it can see, G = g x Q.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longred.attention.documents import Bounds, Documents, whole_rows
from longred.attention.kernels import CallKind, capability_of, using_kernels

HALF = (torch.bfloat16, torch.float16)

BLOCK_LOGITS = 2**24
"""Logits that the exact path holds at once, over rows and heads; mask of a block of queries."""

_MIN_BLOCK = 64


class Rules(NamedTuple):
    """Settings of one layer's attention, which is always causal.

    Attributes:
        scale: factor of the logits; 1/sqrt(d) if None.
        dropout: dropout probability of the attention probabilities.
        window: number of latest keys that a query sees, its own included; None for all.
        softcap: logits x become softcap * tanh(x / softcap), after scaling; None for no cap.
        documents: no query sees another document's keys; None if each row is one document.
    """

    scale: float | None = None
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None
    documents: Documents | None = None


def attend_sdpa(query_BHTd: Tensor, key_BhTd: Tensor, value_BhTd: Tensor, rules: Rules) -> Tensor:
    """Attend with torch's kernels, or by the formula if logits are soft-capped.

    Returns:
        The heads' outputs [B, T, H, d].
    """
    tensors = (query_BHTd, key_BhTd, value_BhTd)
    if _takes_varlen(*tensors, rules):
        rows, _, length, _ = key_BhTd.shape
        documents = rules.documents or whole_rows(rows, length, key_BhTd.device)
        queries = None
        if query_BHTd.shape[2] != length:
            queries = whole_rows(rows, query_BHTd.shape[2], key_BhTd.device)
        return attend_varlen(*tensors, documents, queries, scale=rules.scale, window=rules.window)
    if rules.documents is None:
        output_BHTd = _causal(*tensors, rules, "rows")
    else:
        output_BHTd = _by_document(*tensors, rules.documents.bounds, rules)
    return output_BHTd.transpose(1, 2)


def _takes_varlen(query_BHTd: Tensor, key_BhTd: Tensor, value_BhTd: Tensor, rules: Rules) -> bool:
    """Return whether there are documents, a window or cached keys that `attend_varlen` serves."""
    num_queries, num_keys, device = query_BHTd.shape[2], key_BhTd.shape[2], value_BhTd.device
    is_behind = num_queries != num_keys
    if rules.softcap is not None or rules.dropout or (is_behind and rules.documents is not None):
        return False
    has_window = rules.window is not None and rules.window < num_keys
    if rules.documents is None and not has_window and (num_queries == 1 or not is_behind):
        return False
    d, value_d = query_BHTd.shape[3], value_BhTd.shape[3]
    return d == value_d and supports(device, capability_of(device), value_BhTd.dtype, d)


def supports(device: torch.device, capability: tuple[int, int], dtype: torch.dtype, d: int) -> bool:
    """Return whether the varlen kernel exists for a device, dtype and head dimension.

    Head dimensions 200 to 224 are excluded: their backward pass runs on some GPUs only.
    """
    return (
        device.type == "cuda"
        and capability[0] >= 8
        and dtype in HALF
        and d % 8 == 0
        and (d <= 192 or 224 < d <= 256)
        and torch.backends.cuda.is_flash_attention_available()
    )


def attend_varlen(
    query_BHTd: Tensor,
    key_BhTd: Tensor,
    value_BhTd: Tensor,
    documents: Documents,
    queries: Documents | None = None,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attend inside documents, each query to its own key and the `window` - 1 keys before it.

    Queries and keys are cast to the values' dtype: under autocast RoPE leaves them in fp32.

    Args:
        query_BHTd: queries; if fewer than keys, those of the last tokens of each document.
        key_BhTd: keys, not repeated.
        value_BhTd: values, not repeated.
        documents: where the keys of each document are.
        queries: where its queries are; None if every key has its query.
        scale: factor of the logits; 1/sqrt(d) if None.
        window: see above; None for all keys.

    Returns:
        The heads' outputs [B, T, H, d].
    """
    tensors = [x.transpose(1, 2).to(value_BhTd.dtype) for x in (query_BHTd, key_BhTd, value_BhTd)]
    queries = queries or documents
    output_MHd: Tensor = load_varlen()(
        *(x.flatten(0, 1) for x in tensors),
        queries.cu_seqlens,
        documents.cu_seqlens,
        queries.max_length,
        documents.max_length,
        scale=scale,
        # Number of keys before and after the query's own; -1 means all.
        window_size=(-1 if window is None else window - 1, 0),
    )
    return output_MHd.view(tensors[0].shape)


@functools.cache
def load_varlen() -> Callable[..., Any]:
    """Return torch's function; imported at its first use, since it imports torch's compiler."""
    from torch.nn.attention import varlen

    attend: Callable[..., Any] = varlen.varlen_attn
    if "enable_gqa" in inspect.signature(attend).parameters:
        # Needed since torch 2.12; torch 2.11 takes fewer key heads without it.
        return functools.partial(attend, enable_gqa=True)
    return attend


def _by_document(
    query_BHTd: Tensor,
    key_BhTd: Tensor,
    value_BhTd: Tensor,
    documents: tuple[Bounds, ...],
    rules: Rules,
) -> Tensor:
    """Attend document by document, which costs less than one mask over whole rows.

    Tensors are split, not sliced: the backward pass of a split is one concatenation, that of each
    slice allocates and adds a gradient of the whole tensor.
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
    window = num_keys if rules.window is None else min(rules.window, num_keys)
    settings: dict[str, Any] = {"scale": rules.scale, "dropout_p": rules.dropout}
    if window == num_keys and num_queries in (1, num_keys):
        kind = kind if num_queries == num_keys else "decoding"
        with using_kernels(query_BHTd.device, kind):
            return _whole(query_BHTd, key_BhTd, value_BhTd, settings)
    if window == num_keys and _takes_parts(query_BHTd, key_BhTd, value_BhTd, rules):
        return _in_parts(query_BHTd, key_BhTd, value_BhTd, rules.scale)
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
        # The only kernel that is fused in fp32 needs equal numbers of heads.
        repeats = query_BHTd.shape[1] // key_BhTd.shape[1]
        key_BhTd, value_BhTd = (x.repeat_interleave(repeats, dim=1) for x in (key_BhTd, value_BhTd))
        settings["enable_gqa"] = False
    return F.scaled_dot_product_attention(query_BHTd, key_BhTd, value_BhTd, **settings)


def _is_slow_in_bf16(value_BhTd: Tensor) -> bool:
    """Return whether torch's CPU kernel is slower in bf16 than in fp32: it is on short rows."""
    return (
        value_BhTd.device.type == "cpu"
        and value_BhTd.dtype == torch.bfloat16
        and value_BhTd.shape[2] < 512
    )


def _takes_parts(query_BHTd: Tensor, key_BhTd: Tensor, value_BhTd: Tensor, rules: Rules) -> bool:
    """Return whether `_in_parts` serves these tensors: on a CPU, without gradients."""
    tensors = query_BHTd, key_BhTd, value_BhTd
    return (
        value_BhTd.device.type == "cpu"
        and value_BhTd.dtype in (torch.float32, torch.float64)
        and len({x.dtype for x in tensors}) == len({x.shape[3] for x in tensors}) == 1
        and not rules.dropout
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
    )


def _in_parts(
    query_BHTd: Tensor, key_BhTd: Tensor, value_BhTd: Tensor, scale: float | None
) -> Tensor:
    """Attend to cached keys and to the new tokens' own; weight the two by their softmax sums.

    Neither part needs a mask, with which torch's CPU kernel is two to four times slower. Its
    logarithms of the sums carry no gradient, so that this serves inference only.
    """
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    rows, num_heads, num_queries, head_dim = query_BHTd.shape
    num_key_heads, past = key_BhTd.shape[1], key_BhTd.shape[2] - num_queries
    # The query heads of one key head take the place of further queries: keys are not repeated.
    query_BhGd = query_BHTd.reshape(rows, num_key_heads, -1, head_dim)
    old_BhGd, old_sums_BhG = attend(
        query_BhGd, key_BhTd[:, :, :past], value_BhTd[:, :, :past], scale=scale
    )
    new_BHTd, new_sums_BHT = attend(
        query_BHTd,
        *(
            x[:, :, past:].repeat_interleave(num_heads // num_key_heads, dim=1)
            for x in (key_BhTd, value_BhTd)
        ),
        is_causal=True,
        scale=scale,
    )
    old_share_BHT = torch.sigmoid(old_sums_BhG.reshape(new_sums_BHT.shape) - new_sums_BHT)
    return torch.lerp(new_BHTd, old_BhGd.reshape(query_BHTd.shape), old_share_BHT[..., None])


def _windowed(
    query_BHTd: Tensor, key_BhTd: Tensor, value_BhTd: Tensor, window: int, settings: dict[str, Any]
) -> Tensor:
    """Attend to the latest `window` keys by blocks of queries, so that masks stay small.

    The query heads of one key head take the place of further queries: keys are not repeated.
    """
    rows, num_heads, _, head_dim = query_BHTd.shape
    num_key_heads, num_keys = key_BhTd.shape[1], key_BhTd.shape[2]
    num_shared = num_heads // num_key_heads
    size = min(window, max(_MIN_BLOCK, BLOCK_LOGITS // (num_shared * min(2 * window, num_keys))))
    blocks = _query_blocks(query_BHTd, num_keys, size, window)
    parts = []
    for query_BHQd, (_, keys, seen_QK) in zip(
        torch.split(query_BHTd, size, dim=2), blocks, strict=True
    ):
        # g groups of Q queries each, one after another.
        query_BhGd = query_BHQd.reshape(rows, num_key_heads, -1, head_dim)
        output_BhGd = F.scaled_dot_product_attention(
            query_BhGd,
            key_BhTd[:, :, keys],
            value_BhTd[:, :, keys],
            attn_mask=seen_QK.repeat(num_shared, 1),
            **settings,
        )
        parts.append(output_BhGd.reshape(*query_BHQd.shape[:3], -1))
    return torch.cat(parts, dim=2)


def _query_blocks(
    query_BHTd: Tensor, num_keys: int, size: int, window: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield blocks of `size` queries, the keys that they can see, and the mask of seen keys [Q, K].

    The queries are those of the last tokens; the keys before them come from a cache.
    """
    num_queries = query_BHTd.shape[2]
    past = num_keys - num_queries
    for start in range(0, num_queries, size):
        end = min(start + size, num_queries)
        low, high = max(0, past + start - window + 1), past + end
        index_K = torch.arange(low, high, device=query_BHTd.device)
        behind_QK = index_K[past + start - low :, None] - index_K
        yield slice(start, end), slice(low, high), (behind_QK >= 0) & (behind_QK < window)


def attend_exactly(
    query_BHTd: Tensor, key_BhTd: Tensor, value_BhTd: Tensor, rules: Rules
) -> Tensor:
    """Attend by the formula, in fp32 or better, queries block by block; ignore documents.

    Each block is recomputed in the backward pass, so that memory grows with T and not with T².

    Returns:
        The heads' outputs [B, H, T, d].
    """
    rows, num_heads, num_queries, _ = query_BHTd.shape
    num_keys = key_BhTd.shape[2]
    window = num_keys if rules.window is None else rules.window
    size = max(1, BLOCK_LOGITS // (rows * num_heads * num_keys))
    parts = []
    for queries, keys, seen_QK in _query_blocks(query_BHTd, num_keys, size, window):
        tensors = (query_BHTd[:, :, queries], key_BhTd[:, :, keys], value_BhTd[:, :, keys])
        if torch.is_grad_enabled() and size < num_queries:
            parts.append(checkpoint(_exact_block, *tensors, seen_QK, rules, use_reentrant=False))
        else:
            parts.append(_exact_block(*tensors, seen_QK, rules))
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
