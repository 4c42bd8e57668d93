"""Which of torch's attention kernels are tried on a GPU, and in which order."""

import contextlib
import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

CallKind = Literal["rows", "documents", "decoding", "masked"]
"""Whole rows; documents one by one; queries after cached keys; an explicit mask."""

_CUDNN, _FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
_EFFICIENT, _MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH

CUDNN_FIRST = (9, 10)
"""Major compute capabilities on which cuDNN's kernel is faster than torch's FlashAttention.

Torch carries FlashAttention 2, which uses neither Hopper's nor data-center Blackwell's own matrix
instructions; cuDNN has kernels for both (on Hopper 1.7 to 2.3 times as fast in training). On
Ampere, Ada and workstation Blackwell (12.x) FlashAttention is as fast or faster.
"""


def kernel_order(
    capability: tuple[int, int], kind: CallKind, *, deterministic: bool
) -> tuple[SDPBackend, ...]:
    """Return the kernels to try, first to last; the others are not tried at all.

    Args:
        capability: of the GPU, (major, minor).
        kind: what is computed.
        deterministic: whether equal inputs must give equal bits. torch's FlashAttention and
            memory-efficient kernels then sum in a fixed order; cuDNN's cannot.
    """
    if kind == "masked":
        # cuDNN's backward with a mask gives NaN for lengths of 64 modulo 128 on Hopper
        # (pytorch issue 196678), and FlashAttention takes no mask.
        return (_EFFICIENT, _MATH)
    if kind != "rows" or deterministic:
        # cuDNN builds a plan for each new length, 40 to 500 ms each: documents and caches bring
        # new lengths all the time.
        return (_FLASH, _EFFICIENT, _MATH)
    if capability[0] in CUDNN_FIRST:
        return (_CUDNN, _FLASH, _EFFICIENT, _MATH)
    return (_FLASH, _CUDNN, _EFFICIENT, _MATH)


def using_kernels(
    device: torch.device, kind: CallKind
) -> contextlib.AbstractContextManager[object]:
    """Try the kernels of `kernel_order` inside; changes nothing where there is no GPU."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    order = kernel_order(
        capability_of(device), kind, deterministic=torch.are_deterministic_algorithms_enabled()
    )
    prefer: Callable[..., contextlib.AbstractContextManager[object]] = sdpa_kernel
    return prefer(list(order), set_priority=True)


@functools.cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU, (0, 0) for other devices."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
