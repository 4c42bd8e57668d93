"""torch's attention over documents laid end to end: FlashAttention's kernel, called once.

Shapes: B rows, T tokens, H query heads, h key heads (h divides H), d head dimension, M = B x T.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longred.attention.documents import Documents

HALF = (torch.bfloat16, torch.float16)


def supports(device: torch.device, capability: tuple[int, int], dtype: torch.dtype, d: int) -> bool:
    """Return whether the kernel exists for a device, the values' type and a head dimension.

    Head dimensions of 200 to 224 are left out: their backward pass runs on some GPUs only.
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
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attend causally inside documents, each query to its own and the `window` - 1 keys before it.

    Under autocast, RoPE leaves queries and keys in fp32; they are computed in the values' type.

    Returns:
        The heads' outputs [B, T, H, d].
    """
    tensors = [x.transpose(1, 2).to(value_BhTd.dtype) for x in (query_BHTd, key_BhTd, value_BhTd)]
    ends, longest = documents.cu_seqlens, documents.max_length
    output_MHd: Tensor = load()(
        *(x.flatten(0, 1) for x in tensors),
        ends,
        ends,
        longest,
        longest,
        scale=scale,
        # Keys from so many before the query to none after it; -1 is all of them.
        window_size=(-1 if window is None else window - 1, 0),
    )
    return output_MHd.view(tensors[0].shape)


@functools.cache
def load() -> Callable[..., Any]:
    """Return torch's function, imported at its first use: it brings the compiler with it."""
    from torch.nn.attention import varlen

    attend: Callable[..., Any] = varlen.varlen_attn
    if "enable_gqa" in inspect.signature(attend).parameters:
        # Asked for since torch 2.12; torch 2.11 takes fewer key heads unasked.
        return functools.partial(attend, enable_gqa=True)
    return attend
