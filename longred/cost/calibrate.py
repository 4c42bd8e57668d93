"""Measures this machine: matrix products of a model's sizes, attention, and memory bandwidth.

Memory bandwidth is measured by a matrix-vector product, which is limited by reading the matrix.
"""

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longred.attention.backends import Needs, choose_backend
from longred.attention.sdpa import Rules
from longred.cost.machine import memory_of
from longred.cost.memory import CHUNK_TOKENS
from longred.cost.shape import ModelShape
from longred.cost.speeds import Speeds, key_of, known
from longred.objectives.precision import product

MIN_SECONDS = 0.25
GPU_SECONDS = 0.02
SLOW_SECONDS = 0.5
"""A call on a CPU that takes longer is timed only twice: it averages over disturbances itself."""
MAX_TOKENS = 8192
"""More rows do not make a product faster."""
MAX_CPU_LENGTH = 8192
"""Longer rows do not make attention faster on a CPU, and take minutes: 32,768 tokens of a model
with 9 heads took four on one core."""


def calibrate(
    shape: ModelShape,
    lengths: Sequence[int],
    *,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    backend: str = "auto",
) -> Speeds:
    """Measure the rates of the kernels that training a model consists of.

    Args:
        shape: the model's shape.
        lengths: row lengths, tokens.
        tokens: tokens of a micro-batch.
        device: the device to measure.
        dtype: the compute dtype.
        backend: attention backend.

    Raises:
        PreflightError: the attention backend cannot run this model on this machine.
    """
    rows = min(tokens, MAX_TOKENS)
    sizes = {(one.inputs, one.outputs): 0 for one in shape.linears.values()}
    for one in shape.linears.values():
        sizes[one.inputs, one.outputs] += one.num_weights
    seconds = {size: product_seconds(rows, *size, device, dtype) for size in sizes}
    # The decoder's rate is the mean over sizes, weighted by the operations of each.
    spent = sum(
        weights / (inputs * outputs) * seconds[inputs, outputs]
        for (inputs, outputs), weights in sizes.items()
    )
    chunk = min(CHUNK_TOKENS, rows)
    head = product_seconds(chunk, shape.hidden_size, shape.vocab_size, device, dtype)
    matmul = 6.0 * rows * shape.num_linear / spent
    head_flops = 6.0 * chunk * shape.num_head / head
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    key = key_of(name)
    fastest = max(6.0 * rows * i * o / s for (i, o), s in seconds.items())
    return Speeds(
        name=name,
        kind=device.type,
        memory_bytes=memory_of(device),
        peak_flops=known(key).peak_flops if key else max(fastest, head_flops),
        matmul_flops=matmul,
        head_flops=head_flops,
        attention_flops={
            length: _attention(shape, length, tokens, device, dtype, backend)
            for length in sorted(_measured_lengths(lengths, device))
        },
        bandwidth=_bandwidth(device),
        link_bandwidth=known(key).link_bandwidth if key else 0.0,
        float32_flops=matmul if dtype == torch.float32 else fastest_product(device, torch.float32),
        is_measured=True,
    )


def fastest_product(device: torch.device, dtype: torch.dtype) -> float:
    """Return FLOP/s of a large square matrix product."""
    size = 4096 if device.type == "cuda" else 1024
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / call_seconds(lambda: left @ right, device, at_least=0.1)


def product_seconds(
    rows: int, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Return the seconds of a linear layer's three products: output and both gradients.

    The weight gradient is accumulated in float32, as in the trainer.

    Args:
        rows: tokens.
        inputs, outputs: features.
        device: the device to measure.
        dtype: dtype of all tensors except the weight gradient.
    """
    x = torch.randn(rows, inputs, device=device, dtype=dtype, generator=_generator(device))
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype, generator=_generator(device))

    def products() -> None:
        y = torch.nn.functional.linear(x, weight)
        y @ weight
        product(y.T, x, torch.float32)

    return call_seconds(products, device)


def _measured_lengths(lengths: Sequence[int], device: torch.device) -> set[int]:
    """Return the row lengths to measure attention at; longer ones have the rate of the longest."""
    most = MAX_CPU_LENGTH if device.type == "cpu" else max(lengths)
    return {min(length, most) for length in lengths}


def _attention(
    shape: ModelShape,
    length: int,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    backend: str,
) -> tuple[float, float]:
    """Return causal FLOP/s of attention, forward and backward."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    needs = Needs(device.type, capability, dtype, shape.head_dim, False, False)
    kernel = choose_backend(backend, needs)
    rows = max(1, min(tokens, MAX_TOKENS) // length)
    query, key, value = (
        torch.randn(
            (rows, heads, length, shape.head_dim),
            device=device,
            dtype=dtype,
            generator=_generator(device),
        ).requires_grad_()
        for heads in (shape.num_heads, shape.num_key_heads, shape.num_key_heads)
    )
    flops = 4.0 * rows * length * shape.attention_size * (length + 1) / 2
    with torch.no_grad():
        forward = call_seconds(lambda: kernel.attend(query, key, value, Rules()), device)

    def both() -> None:
        output: Tensor = kernel.attend(query, key, value, Rules())
        torch.autograd.grad(output, (query, key, value), torch.ones_like(output))

    backward = max(call_seconds(both, device) - forward, forward)
    return flops / forward, 2.0 * flops / backward


def _bandwidth(device: torch.device) -> float:
    # 1 GiB on a GPU, far more than its caches hold.
    size = 16384 if device.type == "cuda" else 4096
    matrix = torch.ones(size, size, device=device)
    vector = torch.ones(size, device=device)
    return 4.0 * size * size / call_seconds(lambda: matrix @ vector, device)


def call_seconds(
    work: Callable[[], object], device: torch.device, *, at_least: float = MIN_SECONDS
) -> float:
    """Return the seconds of one call: the median on a GPU, the minimum on a (shared) CPU.

    On a GPU, calls are queued for 20 ms between two synchronisations: training launches kernels
    ahead, so launch and synchronisation latency must not count. The first call allocates,
    and counts only if calls are slow.
    """
    first = timed(work, device)
    if device.type == "cpu" and first > SLOW_SECONDS:
        return min(first, timed(work, device))
    num_calls = 1
    if device.type == "cuda":
        num_calls = max(1, math.ceil(GPU_SECONDS / timed(work, device)))
    times: list[float] = []
    while num_calls * sum(times) < at_least or len(times) < 3:
        times.append(timed(work, device, num_calls=num_calls) / num_calls)
    return min(times) if device.type == "cpu" else sorted(times)[len(times) // 2]


def timed(work: Callable[[], object], device: torch.device, *, num_calls: int = 1) -> float:
    """Return the seconds of `num_calls` calls, from idle device to idle device."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(num_calls):
        work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _generator(device: torch.device) -> torch.Generator:
    """Return a separate generator, so that the global random state does not change."""
    return torch.Generator(device).manual_seed(0)
