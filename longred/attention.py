"""The one attention function that every model runs: causal, by document, by sliding window.

It is registered under a name of its own and without a mask function. transformers then builds no
mask and looks for no packed documents in `position_ids`, where it would take every skipped position
for the start of a new document.

Shapes: B rows, T tokens, H query heads, h key heads (h divides H), d head dimension.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

ATTENTION_NAME = "longred"

Bounds = tuple[tuple[int, int], ...]
"""First and past-the-last token of each document of a row."""


class Captured(NamedTuple):
    """What one decoder layer attended with, queries and keys after RoPE."""

    layer: int
    query_BHTd: Tensor
    key_BhTd: Tensor
    value_BhTd: Tensor
    scale: float | None
    sliding_window: int | None


Capture = Callable[[Captured], None]


def register() -> None:
    """Make the attention known to transformers as `longred`; calling it again changes nothing."""
    AttentionInterface.register(ATTENTION_NAME, attend)


def guard(model: PreTrainedModel) -> None:
    """Make the model refuse padding masks, and find document bounds once per forward."""
    model.base_model.register_forward_pre_hook(_prepare, with_kwargs=True)


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


def attend(
    module: nn.Module,
    query_BHTd: Tensor,
    key_BhTd: Tensor,
    value_BhTd: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    document_ids_BT: Tensor | None = None,
    documents: tuple[Bounds, ...] | None = None,
    capture: Capture | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend causally, inside documents and a sliding window where they are given.

    Args:
        module: the attention layer; its `layer_idx` is told to `capture`.
        query_BHTd: queries after RoPE; where there are fewer than keys, those of the last tokens.
        key_BhTd: keys after RoPE, not repeated.
        value_BhTd: values, not repeated.
        attention_mask: must be None; causality is the function's own business.
        scaling: of the logits; 1/sqrt(d) if None.
        dropout: of the attention probabilities.
        sliding_window: number of latest keys that a query sees, its own included.
        document_ids_BT: ids whose runs are documents; no token sees another document. Positions
            say nothing about documents.
        documents: the same as bounds, found once per forward by `guard`.
        capture: called with what the layer attends with, before it does.

    Returns:
        The heads' outputs [B, T, H, d], and None in place of attention weights.

    Raises:
        ValueError: a mask is given.
    """
    if attention_mask is not None:
        raise ValueError(_MASK_REFUSED)
    if capture is not None:
        layer: Any = module.layer_idx
        capture(Captured(layer, query_BHTd, key_BhTd, value_BhTd, scaling, sliding_window))
    if documents is None and document_ids_BT is not None:
        documents = document_bounds(document_ids_BT)
    settings = {"scale": scaling, "dropout_p": dropout}
    tensors = (query_BHTd, key_BhTd, value_BhTd)
    if documents is None:
        output_BHTd = _causal(*tensors, sliding_window, settings)
    else:
        output_BHTd = _by_document(*tensors, documents, sliding_window, settings)
    return output_BHTd.transpose(1, 2), None


_MASK_REFUSED = (
    "attention 'longred' takes no attention_mask and would not see padding: pass rows of equal "
    "length without a mask, mark documents with document_ids_BT, or load the model with "
    "attention='sdpa'"
)


def _prepare(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Check a forward's arguments before transformers, which silently drops its mask."""
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if mask is not None and not (mask.ndim == 2 and bool(mask.all())):
        raise ValueError(_MASK_REFUSED)
    document_ids_BT = kwargs.get("document_ids_BT")
    if document_ids_BT is None:
        return args, kwargs
    tokens = kwargs.get("input_ids", args[0] if args else None)
    if tokens is not None and tokens.shape != document_ids_BT.shape:
        raise ValueError(
            f"document_ids_BT has shape {tuple(document_ids_BT.shape)}, "
            f"input_ids has {tuple(tokens.shape)}"
        )
    if kwargs.get("past_key_values") is not None:
        raise ValueError(
            "document_ids_BT describes whole rows and cannot be used with a key-value cache"
        )
    kwargs = {key: value for key, value in kwargs.items() if key != "document_ids_BT"}
    return args, {**kwargs, "documents": document_bounds(document_ids_BT), "use_cache": False}


def _by_document(
    query_BHTd: Tensor,
    key_BhTd: Tensor,
    value_BhTd: Tensor,
    documents: tuple[Bounds, ...],
    window: int | None,
    settings: dict[str, Any],
) -> Tensor:
    """Attend document by document, which costs less than one mask over whole rows."""
    rows, first = [], 0
    for bounds, same in itertools.groupby(documents):
        last = first + len(list(same))
        query, key, value = (x[first:last] for x in (query_BHTd, key_BhTd, value_BhTd))
        parts = [
            _causal(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                window,
                settings,
            )
            for start, end in bounds
        ]
        rows.append(torch.cat(parts, dim=2))
        first = last
    return torch.cat(rows)


def _causal(
    query_BHTd: Tensor,
    key_BhTd: Tensor,
    value_BhTd: Tensor,
    window: int | None,
    settings: dict[str, Any],
) -> Tensor:
    num_queries, num_keys = query_BHTd.shape[2], key_BhTd.shape[2]
    if window is None or window >= num_keys:
        if num_queries in (1, num_keys):
            settings = {**settings, "is_causal": num_queries > 1, "enable_gqa": True}
            if _is_slow_in_bf16(value_BhTd):
                with torch.autocast("cpu", enabled=False):
                    tensors = (query_BHTd.float(), key_BhTd.float(), value_BhTd.float())
                    output_BHTd = F.scaled_dot_product_attention(*tensors, **settings)
                return output_BHTd.to(value_BhTd.dtype)
            return F.scaled_dot_product_attention(query_BHTd, key_BhTd, value_BhTd, **settings)
        window = num_keys
    return _windowed(query_BHTd, key_BhTd, value_BhTd, window, settings)


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
    place_T = torch.arange(num_keys, device=query_BHTd.device)
    parts = []
    for start in range(0, num_queries, window):
        end = min(start + window, num_queries)
        low, high = max(0, past + start - window + 1), past + end
        behind = place_T[past + start : high, None] - place_T[None, low:high]
        parts.append(
            F.scaled_dot_product_attention(
                query_BHTd[:, :, start:end],
                key_BHTd[:, :, low:high],
                value_BHTd[:, :, low:high],
                attn_mask=(behind >= 0) & (behind < window),
                **settings,
            )
        )
    return torch.cat(parts, dim=2)
