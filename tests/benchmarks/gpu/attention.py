"""Measure causal attention, forward and backward, by kernel and length, with the model's heads."""

import functools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu.child import Check
from gpu.sizes import calibrated, device_of, dtype_of, scale_of, speeds_of
from longred.attention.backends import BACKENDS, Needs
from longred.attention.documents import whole_rows
from longred.attention.sdpa import Rules, attend_varlen, supports
from longred.cost.calibrate import call_seconds

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

MATH_TOKENS = 1024
"""Longest rows for which the math kernel may materialize whole attention maps."""


def measure(check: Check) -> None:
    """Measure every kernel at every length; skip kernels that cannot run here."""
    device = device_of(check)
    failed = []
    for length in scale_of(check).attention:
        for name, attend in _kernels(check, device).items():
            if name == "math" and length > MATH_TOKENS:
                check.skip(f"{name}-{length}", "whole attention maps would not fit")
                continue
            try:
                _one(check, f"{name}-{length}", length, attend, device)
            except (RuntimeError, ValueError) as error:
                if _is_refusal(error):
                    check.skip(f"{name}-{length}", str(error).split("\n")[0][:200])
                    continue
                check.fail(f"{name}-{length}", repr(error)[:1000])
                failed.append(f"{name}-{length}")
    assert not failed, f"failed: {', '.join(failed)}"


def _is_refusal(error: Exception) -> bool:
    """Return whether the error says that a kernel does not support these tensors or this device."""
    words = ("No available kernel", "No viable backend", "not available", "only supported")
    return any(word.lower() in str(error).lower() for word in words)


def _kernels(check: Check, device: torch.device) -> Mapping[str, Attend]:
    """Return torch's kernels and those of the installed FlashAttention packages."""
    found: dict[str, Attend] = {
        "cudnn": functools.partial(_sdpa, SDPBackend.CUDNN_ATTENTION),
        "flash": functools.partial(_sdpa, SDPBackend.FLASH_ATTENTION),
        "efficient": functools.partial(_sdpa, SDPBackend.EFFICIENT_ATTENTION),
        "math": functools.partial(_sdpa, SDPBackend.MATH),
    }
    capability = torch.cuda.get_device_capability() if device.type == "cuda" else (0, 0)
    head_dim = scale_of(check).kl[3]
    needs = Needs(device.type, capability, dtype_of(check), head_dim, False, False)
    if supports(device, capability, dtype_of(check), head_dim):
        found["varlen"] = _varlen
    for name, backend in BACKENDS.items():
        if backend.problem(needs) is None:
            found[name] = functools.partial(_ours, backend.attend)
    return found


def _sdpa(kernel: SDPBackend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    grouped = kernel is not SDPBackend.EFFICIENT_ATTENTION
    if not grouped:
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    with sdpa_kernel(kernel):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)


def _varlen(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Run torch's varlen kernel, with each row as one document."""
    rows, _, length, _ = query.shape
    return attend_varlen(query, key, value, whole_rows(rows, length, query.device))


def _ours(attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend(query, key, value, Rules())


def _one(check: Check, name: str, length: int, attend: Attend, device: torch.device) -> None:
    _, heads, key_heads, dim, _ = scale_of(check).kl
    rows = max(1, (256 if check.tiny else 8192) // length)
    tensors = [
        torch.randn(rows, n, length, dim, device=device, dtype=dtype_of(check), requires_grad=True)
        for n in (heads, key_heads, key_heads)
    ]
    with torch.no_grad():
        forward = call_seconds(lambda: attend(*tensors), device, at_least=0.1)
    output = attend(*tensors)
    gradient = torch.ones_like(output)
    backward = call_seconds(
        lambda: torch.autograd.grad(output, tensors, gradient, retain_graph=True),
        device,
        at_least=0.1,
    )
    # Two GEMMs over T (T + 1) / 2 logits per head; backward counts as two forwards, as in the plan.
    flops = 2.0 * rows * heads * length * (length + 1) * dim
    planned = speeds_of(check).attention(length)
    here = calibrated(check).attention(length)
    keys = ("forward_flops_per_second", "backward_flops_per_second")
    rates = (flops / forward, 2.0 * flops / backward)
    check.line(
        name,
        settings={"length": length, "rows": rows, "dtype": str(dtype_of(check))},
        measured={
            "forward_seconds": forward,
            "backward_seconds": backward,
            **dict(zip(keys, rates, strict=True)),
        },
        planned=dict(zip(keys, planned, strict=True)),
        trainer_measured_here=dict(zip(keys, here, strict=True)),
    )
