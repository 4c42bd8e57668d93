"""Rates of known GPUs, and the type that `calibrate` fills for this machine.

Sources: data sheets for dense bfloat16 peaks, of which large products sustain about three quarters;
arXiv 2407.08608 and cuDNN's published measurements for attention.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from longred.errors import ConfigError

GIB = float(2**30)


@dataclass(frozen=True, slots=True)
class Speeds:
    """Rates and memory of one device.

    Attributes:
        name: name of the device.
        kind: `cpu` or `cuda`.
        memory_bytes: memory of the device.
        peak_flops: FLOP/s of the data sheet, or of the fastest measured product; base of MFU.
        matmul_flops: FLOP/s of products with a decoder layer's weights.
        head_flops: FLOP/s of products with the LM head.
        attention_flops: row length → causal FLOP/s of attention forward and backward; backward
            counts as two forward passes; other lengths use the nearest.
        bandwidth: bytes per second that a copy reads and writes.
        link_bandwidth: bytes per second between devices; 0 for a single device.
        float32_flops: FLOP/s of float32 products; 0 means the same as `matmul_flops`.
        is_measured: whether the rates were measured on this machine.
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
        """Return the FLOP/s of attention forward and backward for a row length."""
        nearest = min(self.attention_flops, key=lambda known: abs(known - length))
        return self.attention_flops[nearest]


BACKWARD_PRODUCTS = 2.5
"""Backward products per forward product of attention kernels, as papers count them.

Kernels recompute the logits: five products instead of four. Needed operations count two.
"""

MATMUL_SHARE = 0.73
"""Share of the peak that large bfloat16 products sustain under a power limit."""

_ATTENTION = {
    "sdpa": (0.545, 0.52),
    "flash_attention_2": (0.37, 0.325),
    "flash_attention_3": (0.62, 0.565),
    "flash_attention_4": (0.62, 0.565),
}
"""Shares of the peak on Hopper, forward and backward, at head dimension 128 and 16K tokens.

The backward share counts the products that the kernel executes (`BACKWARD_PRODUCTS`).
"""

_OLDER = (0.6, 0.52)
"""Shares of FlashAttention 2 on GPUs older than Hopper."""


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
"""Known GPUs: memory, dense bfloat16 peak, copy and link bandwidth, float32 peak without TF32."""


def known(name: str, *, backend: str = "auto", dtype: str = "bfloat16") -> Speeds:
    """Return the rates of a known GPU.

    Args:
        name: a key of `GPUS`.
        backend: attention backend.
        dtype: compute dtype; float32 means without TF32, torch's default.

    Raises:
        ConfigError: the GPU is unknown.
    """
    if name not in GPUS:
        raise ConfigError(
            f"--device: {name!r} is not one of auto, cpu, {', '.join(GPUS)}; for another GPU, "
            "run --calibrate on a machine that has it"
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
    """Return the key in `GPUS` of CUDA's device name; None if unknown."""
    for key, gpu in GPUS.items():
        if all(word in device_name for word in gpu.words):
            return key
    return None
