"""How fast a device computes: known GPUs, and what was measured here.

Rates of known GPUs are published figures: peaks of the data sheets (dense bfloat16), of which large
products reach about three quarters; attention by arXiv 2407.08608 and cuDNN's own measurements.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from longred.errors import ConfigError

GIB = float(2**30)


@dataclass(frozen=True, slots=True)
class Speeds:
    """Rates of one device, and its memory.

    Attributes:
        name: what it is called.
        kind: `cpu` or `cuda`.
        memory_bytes: of the device.
        peak_flops: of the data sheet, or the fastest product measured; MFU is a share of it.
        matmul_flops: what products with a decoder layer's weights reach, a second.
        head_flops: what products with the output embedding reach, a second.
        attention_flops: row length → what attention reaches forward and backward, causal FLOPs a
            second, the backward pass counted as two forward passes; lengths between are taken from
            the nearest.
        bandwidth: bytes that a copy reads and writes a second.
        link_bandwidth: bytes a second between devices, 0 where there is one.
        float32_flops: what products in float32 reach, a second; 0 for as many as others.
        is_measured: whether it was measured on this machine.
    """

    name: str
    kind: str
    memory_bytes: float
    peak_flops: float
    matmul_flops: float
    head_flops: float
    attention_flops: Mapping[int, tuple[float, float]]
    bandwidth: float
    link_bandwidth: float = 0.0
    float32_flops: float = 0.0
    is_measured: bool = False

    def attention(self, length: int) -> tuple[float, float]:
        """Return the rates of attention over rows of a length, forward and backward."""
        nearest = min(self.attention_flops, key=lambda known: abs(known - length))
        return self.attention_flops[nearest]


BACKWARD_PRODUCTS = 2.5
"""Products of attention's backward pass for each of its forward pass, as the papers count them.

The kernel takes the logits again: five products for two. What a model needs is counted as two.
"""

MATMUL_SHARE = 0.73
"""Of the peak that large bfloat16 products sustain under a training's power limit."""

_ATTENTION = {
    "sdpa": (0.545, 0.52),
    "flash_attention_2": (0.37, 0.325),
    "flash_attention_3": (0.62, 0.565),
    "flash_attention_4": (0.62, 0.565),
}
"""Shares of the peak on Hopper, forward and backward, head dimension 128, 16K tokens.

Of the products that the kernel takes, `BACKWARD_PRODUCTS` in the backward pass.
"""

_OLDER = (0.6, 0.52)
"""FlashAttention 2 on what is older than Hopper, where it is the fastest."""


@dataclass(frozen=True, slots=True)
class _Gpu:
    words: tuple[str, ...]
    memory_gib: float
    teraflops: float
    bandwidth: float
    link: float
    float32: float
    is_hopper: bool


GPUS = {
    "a100-40gb": _Gpu(("A100", "40GB"), 39.4, 312, 1.4e12, 250e9, 19.5, False),
    "a100-80gb": _Gpu(("A100",), 79.1, 312, 1.8e12, 250e9, 19.5, False),
    "h100": _Gpu(("H100",), 79.1, 989, 3.0e12, 380e9, 67, True),
    "h200": _Gpu(("H200",), 139.8, 989, 4.3e12, 380e9, 67, True),
    "b200": _Gpu(("B200",), 178.0, 2250, 7.0e12, 750e9, 75, True),
    "l40s": _Gpu(("L40S",), 44.4, 362, 0.75e12, 25e9, 91.6, False),
    "rtx-4090": _Gpu(("4090",), 23.5, 165, 0.9e12, 20e9, 82.6, False),
}
"""Known GPUs: memory that torch sees, dense bfloat16 peak, memory and link bandwidth, float32 peak.

That of memory is a copy's; that of float32 is without TF32.
"""


def known(name: str, *, backend: str = "auto", dtype: str = "bfloat16") -> Speeds:
    """Return a known GPU.

    Args:
        name: a key of `GPUS`.
        backend: of attention.
        dtype: the compute type; float32 is without TF32, as torch leaves it.

    Raises:
        ConfigError: it is not known.
    """
    if name not in GPUS:
        raise ConfigError(
            f"--device: {name!r} is not one of auto, cpu, {', '.join(GPUS)}; a GPU that is not "
            "listed is measured by --calibrate on a machine that has it"
        )
    gpu = GPUS[name]
    peak = 1e12 * (gpu.teraflops if dtype == "bfloat16" else gpu.float32)
    shares = _ATTENTION.get(backend, _ATTENTION["sdpa"]) if gpu.is_hopper else _OLDER
    return Speeds(
        name=name,
        kind="cuda",
        memory_bytes=gpu.memory_gib * GIB,
        peak_flops=peak,
        matmul_flops=MATMUL_SHARE * peak,
        head_flops=MATMUL_SHARE * peak,
        attention_flops={16384: (shares[0] * peak, shares[1] * peak * 2.0 / BACKWARD_PRODUCTS)},
        bandwidth=gpu.bandwidth,
        link_bandwidth=gpu.link,
        float32_flops=MATMUL_SHARE * 1e12 * gpu.float32,
    )


@functools.cache
def key_of(device_name: str) -> str | None:
    """Return the key of the GPU that CUDA names so, or None for one that is not known."""
    for key, gpu in GPUS.items():
        if all(word in device_name for word in gpu.words):
            return key
    return None
