"""torch's fused attention kernels on a GPU: the order to try them in, and the cuDNN library."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

CallKind = Literal["rows", "documents", "decoding", "masked"]
"""Whole rows; one document at a time; queries after cached keys; an explicit mask."""

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
    """Return the kernels to try, first to last; other kernels are never used.

    Args:
        capability: compute capability of the GPU, (major, minor).
        kind: kind of call.
        deterministic: whether equal inputs must give equal bits. torch's FlashAttention and
            memory-efficient kernels can sum in a fixed order; cuDNN's cannot.
    """
    if kind == "masked":
        # cuDNN's backward with a mask gives NaN for lengths of 64 modulo 128 on Hopper
        # (pytorch issue 196678), and FlashAttention takes no mask.
        return (_EFFICIENT, _MATH)
    if kind != "rows" or deterministic:
        # cuDNN builds a plan for each new length, 40 to 500 ms each; documents and caches have
        # ever new lengths.
        return (_FLASH, _EFFICIENT, _MATH)
    if capability[0] in CUDNN_FIRST:
        return (_CUDNN, _FLASH, _EFFICIENT, _MATH)
    return (_FLASH, _CUDNN, _EFFICIENT, _MATH)


def using_kernels(
    device: torch.device, kind: CallKind
) -> contextlib.AbstractContextManager[object]:
    """Use the kernels of `kernel_order` inside the context; do nothing without a GPU."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    order = kernel_order(
        capability_of(device), kind, deterministic=torch.are_deterministic_algorithms_enabled()
    )
    prefer: Callable[..., contextlib.AbstractContextManager[object]] = sdpa_kernel
    return prefer(list(order), set_priority=True)


@functools.cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU; (0, 0) for other devices."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def loaded_cudnn() -> dict[str, str]:
    """Return the cuDNN that this process has loaded; empty if torch has none.

    Returns:
        `cudnn_version` as in 9.19.0; `cudnn_path`, the folders of its libraries; `cudnn_origin`:
        `torch` for the one that came with torch, `system` for another that hides it, `mixed` if
        libraries of both are loaded. More libraries are loaded with the first kernel.
    """
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    maps = Path("/proc/self/maps")
    if version is None:
        return {}
    text = maps.read_text(encoding="utf-8") if maps.exists() else ""
    return {"cudnn_version": readable_version(version), **cudnn_folders(text)}


def cudnn_folders(maps: str) -> dict[str, str]:
    """Return path and origin of the cuDNN libraries in the text of a /proc/PID/maps."""
    paths = [Path(line.split(maxsplit=5)[-1]) for line in maps.splitlines()]
    folders = sorted({str(path.parent) for path in paths if path.name.startswith("libcudnn")})
    # Inside torch, or the package that torch's wheel requires.
    inside = str(Path(torch.__file__).resolve().parent / "lib")
    is_own = [folder == inside or folder.endswith("/nvidia/cudnn/lib") for folder in folders]
    origin = "torch" if all(is_own) else "mixed" if any(is_own) else "system"
    return {"cudnn_path": ", ".join(folders) or "inside torch", "cudnn_origin": origin}


def readable_version(version: int) -> str:
    """Return a cuDNN version number in the usual form: 91900 is 9.19.0, 8902 is 8.9.2."""
    major, rest = divmod(version, 10_000 if version >= 90_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"
