"""Micro-benchmarks of this machine: products of a model's own sizes, and attention.

The speed of memory is that of a product of a matrix with one vector, which does nothing but read.
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
MAX_TOKENS = 8192
"""Products of more rows are no faster."""


def calibrate(
    shape: ModelShape,
    lengths: Sequence[int],
    *,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    backend: str = "auto",
) -> Speeds:
    """Measure how fast this machine computes what a training of a model consists of.

    Args:
        shape: of the model.
        lengths: tokens of rows.
        tokens: of a micro-batch.
        device: where.
        dtype: the compute type.
        backend: of attention.

    Raises:
        PreflightError: the backend cannot serve the model here.
    """
    rows = min(tokens, MAX_TOKENS)
    sizes = {(one.inputs, one.outputs): 0 for one in shape.linears.values()}
    for one in shape.linears.values():
        sizes[one.inputs, one.outputs] += one.num_weights
    seconds = {size: product_seconds(rows, *size, device, dtype) for size in sizes}
    # The decoder's rate: each size weighs as many operations as the model has of it.
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
            for length in sorted(set(lengths))
        },
        bandwidth=_bandwidth(device),
        link_bandwidth=known(key).link_bandwidth if key else 0.0,
        float32_flops=matmul if dtype == torch.float32 else fastest_product(device, torch.float32),
        is_measured=True,
    )


def fastest_product(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOPs a second of a large product of matrices."""
    size = 4096 if device.type == "cuda" else 1024
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / call_seconds(lambda: left @ right, device, at_least=0.1)


def product_seconds(
    rows: int, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Return the seconds of a linear layer's three products: output, and both gradients.

    The weight's is taken into float32, as the trainer takes it.

    Args:
        rows: tokens.
        inputs, outputs: features.
        device: where.
        dtype: of all but the weight's gradient.
    """
    x = torch.randn(rows, inputs, device=device, dtype=dtype, generator=_generator(device))
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype, generator=_generator(device))

    def products() -> None:
        y = torch.nn.functional.linear(x, weight)
        y @ weight
        product(y.T, x, torch.float32)

    return call_seconds(products, device)


def _attention(
    shape: ModelShape,
    length: int,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    backend: str,
) -> tuple[float, float]:
    """Return causal FLOPs a second of attention, forward and backward."""
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
    # On a GPU a gibibyte, of which its caches hold little.
    size = 16384 if device.type == "cuda" else 4096
    matrix = torch.ones(size, size, device=device)
    vector = torch.ones(size, device=device)
    return 4.0 * size * size / call_seconds(lambda: matrix @ vector, device)


def call_seconds(
    work: Callable[[], object], device: torch.device, *, at_least: float = MIN_SECONDS
) -> float:
    """Return the time of a call: a GPU's median; a CPU's best, since others work on it too.

    On a GPU calls follow each other for 20 ms between two waits: a training starts a kernel while
    the one before runs, so the time to start it and to hear of its end must not count.
    """
    timed(work, device)
    num_calls = 1
    if device.type == "cuda":
        num_calls = max(1, math.ceil(GPU_SECONDS / timed(work, device)))
    times: list[float] = []
    while num_calls * sum(times) < at_least or len(times) < 3:
        times.append(timed(work, device, num_calls=num_calls) / num_calls)
    return min(times) if device.type == "cpu" else sorted(times)[len(times) // 2]


def timed(work: Callable[[], object], device: torch.device, *, num_calls: int = 1) -> float:
    """Return the seconds of so many calls, from when the device is idle until it is again."""
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
    """Return a generator of its own: a training's random numbers stay what they are."""
    return torch.Generator(device).manual_seed(0)
