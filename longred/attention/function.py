"""The function that transformers calls in every attention layer, and the check of its arguments.

Shapes: B rows, T tokens, H query heads, h key heads (h divides H), d head dimension.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from transformers import AttentionInterface, PreTrainedModel

from longred.attention.backends import BACKENDS, Backend
from longred.attention.cached import Cached, attend_cached
from longred.attention.documents import Documents, find_documents, ids_from_cu_seqlens
from longred.attention.reindexed import Reindexed
from longred.attention.sdpa import Rules

ATTENTION_NAME = "longred"


class Captured(NamedTuple):
    """Inputs of one decoder layer's attention, queries and keys after RoPE."""

    layer: int
    query_BHTd: Tensor
    key_BhTd: Tensor
    value_BhTd: Tensor
    scale: float | None
    sliding_window: int | None
    softcap: float | None = None


Capture = Callable[[Captured], None]


def register() -> None:
    """Register the attention with transformers as `longred`; idempotent."""
    AttentionInterface.register(ATTENTION_NAME, attend)


def guard(model: PreTrainedModel, backend: Backend | None = None) -> None:
    """Make a model refuse padding masks, find documents once per forward, and use a backend."""
    base: Any = model.base_model
    base.register_forward_pre_hook(_prepare, with_kwargs=True)
    use_backend(model, backend or BACKENDS["sdpa"])


def use_backend(model: PreTrainedModel, backend: Backend) -> None:
    """Compute a model's attention by another backend."""
    base: Any = model.base_model
    for layer in base.layers:
        layer.self_attn.attention_backend = backend


@torch.compiler.disable  # type: ignore[untyped-decorator]
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
    softcap: float | None = None,
    document_ids_BT: Tensor | None = None,
    documents: Documents | None = None,
    capture: Capture | None = None,
    sequence: DeviceMesh | None = None,
    cached: Cached | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend causally, inside documents and a sliding window if they are given.

    Never compiled: it branches on documents, which differ in every micro-batch.

    Args:
        module: the attention layer: `capture` gets its `layer_idx`; its `attention_backend`, set by
            `guard`, computes; sdpa if it has none. Its `reindexed`, set by `reindex`, computes rows
            that are longer than it leaves as they are.
        query_BHTd: queries after RoPE; if fewer than keys, those of the last tokens.
        key_BhTd: keys after RoPE, not repeated.
        value_BhTd: values, not repeated; may be narrower than keys (latent attention).
        attention_mask: must be None.
        scaling: factor of the logits; 1/sqrt(d) if None.
        dropout: dropout probability of the attention probabilities.
        sliding_window: number of latest keys that a query sees, its own included.
        softcap: logits x become softcap * tanh(x / softcap), after scaling.
        document_ids_BT: each run of equal ids is one document; no token sees another document.
            Positions do not mark documents.
        documents: the same documents, found once per forward by `guard`.
        capture: called with the layer's inputs before they are used.
        sequence: mesh of the processes that share the rows, in the order of their tokens; documents
            are those of whole rows.
        cached: keys and values are all slots of a cache, and every row has one query.
        s_aux: must be None: attention sinks, which no backend computes.

    Returns:
        The heads' outputs [B, T, H, d], contiguous, and None in place of attention weights.

    Raises:
        ValueError: a mask or attention sinks are given.
    """
    if attention_mask is not None:
        raise ValueError(_MASK_REFUSED)
    if s_aux is not None:
        raise ValueError("attention 'longred' does not compute attention sinks (s_aux)")
    if capture is not None:
        layer: Any = module.layer_idx
        tensors = (query_BHTd, key_BhTd, value_BhTd)
        capture(Captured(layer, *tensors, scaling, sliding_window, softcap))
    if documents is None and document_ids_BT is not None:
        documents = find_documents(document_ids_BT, query_BHTd.device)
    backend: Any = getattr(module, "attention_backend", BACKENDS["sdpa"])
    rules = Rules(scaling, dropout, sliding_window, softcap, documents)
    value_size, missing = value_BhTd.shape[-1], query_BHTd.shape[-1] - value_BhTd.shape[-1]
    if missing:
        # Kernels want one head dimension; zeros add nothing to the outputs that are kept.
        value_BhTd = F.pad(value_BhTd, (0, missing))
    reindexed: Reindexed | None = getattr(module, "reindexed", None)
    num_keys = key_BhTd.shape[2] if cached is None else cached.longest
    if reindexed is not None and reindexed.takes(num_keys):
        output_BTHd = reindexed.attend(query_BHTd, key_BhTd, value_BhTd, rules, cached)
    elif cached is not None:
        output_BTHd = attend_cached(query_BHTd, key_BhTd, value_BhTd, cached, rules)
    elif sequence is None:
        output_BTHd = backend.attend(query_BHTd, key_BhTd, value_BhTd, rules)
    else:
        # DeepSpeed-Ulysses (arXiv 2309.14509): some heads of all tokens, instead of all heads of
        # some.
        keys = (_enough_heads(x, sequence.size()) for x in (key_BhTd, value_BhTd))
        some_heads = (_reshard(x, sequence) for x in (query_BHTd, *keys))
        output_BTHd = _reshard(backend.attend(*some_heads, rules), sequence)
    # Some models, as AFMoE, view the heads as one dimension.
    return output_BTHd[..., :value_size].contiguous(), None


def _enough_heads(x_BhTd: Tensor, num_processes: int) -> Tensor:
    """Repeat each key head until every process can have as many; they serve the same queries."""
    times = num_processes // math.gcd(x_BhTd.shape[1], num_processes)
    return x_BhTd.repeat_interleave(times, dim=1) if times > 1 else x_BhTd


def _reshard(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """Divide dimension 1 over the processes instead of dimension 2."""
    divided = DTensor.from_local(x, mesh, [Shard(2)], run_check=False)
    resharded: Tensor = divided.redistribute(placements=[Shard(1)]).to_local()
    return resharded


_MASK_REFUSED = (
    "attention 'longred' takes no attention_mask and would not see padding: pass rows of equal "
    "length without a mask, mark documents with document_ids_BT, or load the model with "
    "attention='sdpa'"
)


def _prepare(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Check a forward's arguments before transformers, which silently drops the mask."""
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if mask is not None and not (mask.ndim == 2 and bool(mask.all())):
        raise ValueError(_MASK_REFUSED)
    kwargs = {**kwargs}
    document_ids_BT, cu_seqlens = (kwargs.pop(k, None) for k in ("document_ids_BT", "cu_seqlens"))
    if document_ids_BT is None and cu_seqlens is None:
        return args, kwargs
    tokens: Any = kwargs.get("input_ids", args[0] if args else None)
    if document_ids_BT is None:
        document_ids_BT = ids_from_cu_seqlens(cu_seqlens.cpu(), *tokens.shape)
    sequence = kwargs.get("sequence")
    times = 1 if sequence is None else sequence.size()
    if tokens is not None and (tokens.shape[0], tokens.shape[1] * times) != document_ids_BT.shape:
        raise ValueError(
            f"document_ids_BT has shape {tuple(document_ids_BT.shape)}, "
            f"input_ids has {tuple(tokens.shape)}"
        )
    if kwargs.get("past_key_values") is not None:
        raise ValueError(
            "document_ids_BT describes whole rows and cannot be used with a key-value cache"
        )
    device = document_ids_BT.device if tokens is None else tokens.device
    documents = find_documents(document_ids_BT, device)
    return args, {**kwargs, "documents": documents, "use_cache": False}
