"""Attention of new tokens to the keys of a cache, in which every row has its own number of keys.

Shapes: B rows, H query heads, h key heads (h divides H), g = H / h, d head dimension, S slots of
the cache per row.
"""

import functools
import inspect
import logging
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longred.attention.kernels import capability_of, using_kernels
from longred.attention.sdpa import Rules, load_varlen, supports

log = logging.getLogger("longred.attention")

_TOLERANCE = 0.02
"""Largest difference in bf16 or fp16 between two kernels on values of standard deviation 1."""


class Cached(NamedTuple):
    """How much of a cache each row uses.

    Attributes:
        used_B: slots in use, those of the new tokens included; int32, on the device.
        longest: the largest of them.
    """

    used_B: Tensor
    longest: int


def attend_cached(
    query_BH1d: Tensor, key_BhSd: Tensor, value_BhSd: Tensor, cached: Cached, rules: Rules
) -> Tensor:
    """Attend with one new token per row to the used slots of the row, its own included.

    Keys are never repeated for the query heads that share them, and the only mask is [B, S].

    Args:
        query_BH1d: queries of the new tokens.
        key_BhSd: all slots; a row's tokens are in order, from the first slot on.
        value_BhSd: the same.
        cached: slots in use.
        rules: `documents` and `dropout` are ignored.

    Returns:
        The heads' outputs [B, 1, H, d].
    """
    tensors = query_BH1d, key_BhSd, value_BhSd
    if rules.softcap is None and _takes_varlen(*tensors, rules.window is not None):
        return _varlen(*tensors, cached, rules)
    return _grouped(*tensors, cached, rules)


def _grouped(
    query_BH1d: Tensor, key_BhSd: Tensor, value_BhSd: Tensor, cached: Cached, rules: Rules
) -> Tensor:
    """Attend with the query heads of one key head in the place of its queries."""
    key_BhSd, value_BhSd = (x[:, :, : cached.longest] for x in (key_BhSd, value_BhSd))
    # Under autocast RoPE leaves queries in fp32.
    query_BH1d = query_BH1d.to(value_BhSd.dtype)
    slot_S = torch.arange(cached.longest, device=query_BH1d.device)
    seen_BS = slot_S < cached.used_B[:, None]
    if rules.window is not None:
        seen_BS &= slot_S >= cached.used_B[:, None] - rules.window
    rows, num_heads, _, head_dim = query_BH1d.shape
    query_Bhgd = query_BH1d.reshape(rows, key_BhSd.shape[1], -1, head_dim)
    if rules.softcap is not None:
        output_Bhgd = _softcapped(
            query_Bhgd, key_BhSd, value_BhSd, seen_BS, rules.scale, rules.softcap
        )
    else:
        with using_kernels(query_BH1d.device, "masked"):
            output_Bhgd = F.scaled_dot_product_attention(
                query_Bhgd,
                key_BhSd,
                value_BhSd,
                attn_mask=seen_BS[:, None, None].expand(-1, 1, query_Bhgd.shape[2], -1),
                scale=rules.scale,
            )
    return output_Bhgd.reshape(rows, 1, num_heads, -1)


def _softcapped(
    query_Bhgd: Tensor,
    key_BhSd: Tensor,
    value_BhSd: Tensor,
    seen_BS: Tensor,
    scale: float | None,
    softcap: float,
) -> Tensor:
    scale = query_Bhgd.shape[-1] ** -0.5 if scale is None else scale
    precise = torch.promote_types(value_BhSd.dtype, torch.float32)
    logits_BhgS = scale * (query_Bhgd.to(precise) @ key_BhSd.to(precise).transpose(-1, -2))
    logits_BhgS = softcap * torch.tanh(logits_BhgS / softcap)
    probs_BhgS = logits_BhgS.masked_fill(~seen_BS[:, None, None], float("-inf")).softmax(dim=-1)
    return (probs_BhgS @ value_BhSd.to(precise)).to(value_BhSd.dtype)


def _varlen(
    query_BH1d: Tensor, key_BhSd: Tensor, value_BhSd: Tensor, cached: Cached, rules: Rules
) -> Tensor:
    """Attend with torch's varlen kernel, which reads only the used slots.

    A lone query needs no causal mask. Without one and without a window, the kernel reads keys once
    for all heads that share them, and divides long rows over the GPU (split-KV).
    """
    rows, num_heads, _, head_dim = query_BH1d.shape
    key_Mhd, value_Mhd = (x.transpose(1, 2).flatten(0, 1) for x in (key_BhSd, value_BhSd))
    index = torch.arange(rows + 1, device=query_BH1d.device, dtype=torch.int32)
    output_BHd: Tensor = load_varlen()(
        query_BH1d[:, :, 0].to(value_BhSd.dtype),
        key_Mhd.to(value_BhSd.dtype),
        value_Mhd,
        index,
        index * key_BhSd.shape[2],
        1,
        key_BhSd.shape[2],
        scale=rules.scale,
        window_size=(-1, -1) if rules.window is None else (rules.window - 1, 0),
        seqused_k=cached.used_B,
    )
    return output_BHd.view(rows, 1, num_heads, head_dim)


def _takes_varlen(
    query_BH1d: Tensor, key_BhSd: Tensor, value_BhSd: Tensor, has_window: bool
) -> bool:
    """Return whether the varlen kernel serves these tensors, and gives what the mask gives."""
    d, device, dtype = query_BH1d.shape[3], value_BhSd.device, value_BhSd.dtype
    if d != value_BhSd.shape[3] or not supports(device, capability_of(device), dtype, d):
        return False
    if not _reads_used_slots():
        return False
    return _varlen_is_right(
        device, dtype, query_BH1d.shape[1], key_BhSd.shape[1], d, has_window=has_window
    )


@functools.cache
def _reads_used_slots() -> bool:
    """Return whether this torch's varlen function takes `seqused_k`.

    Cached: reading a signature takes a tenth of a millisecond, in every layer of every step.
    """
    return "seqused_k" in inspect.signature(load_varlen()).parameters


@functools.cache
def _varlen_is_right(
    device: torch.device,
    dtype: torch.dtype,
    num_heads: int,
    num_key_heads: int,
    d: int,
    *,
    has_window: bool,
) -> bool:
    """Compare the varlen kernel with the mask once, on rows of several lengths.

    How it treats slots behind the used ones differs between versions of torch. The longest row is
    long enough to be divided over the GPU.
    """
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    query, keys, values = draw(3, num_heads, 1, d), *(draw(3, 2048, num_key_heads, d) for _ in "kv")
    tensors = query, keys.transpose(1, 2), values.transpose(1, 2)
    cached = Cached(torch.tensor([1, 130, 2000], device=device, dtype=torch.int32), 2000)
    rules = Rules(window=64 if has_window else None)
    found, wanted = (f(*tensors, cached, rules) for f in (_varlen, _grouped))
    largest = float((found.float() - wanted.float()).abs().max())
    if not largest < _TOLERANCE:
        log.warning("attention: torch's varlen kernel is not used: it differs by %.2g", largest)
    return largest < _TOLERANCE
