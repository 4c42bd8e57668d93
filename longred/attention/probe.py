"""Find the attention kernels that really run on a device by running each kind of call once.

torch chooses among its kernels silently, and a system cuDNN can hide torch's own: both cost up to
half the speed and show nowhere else.
"""

import re

import torch
from torch.profiler import ProfilerActivity, profile

from longred.attention.documents import find_documents
from longred.attention.kernels import loaded_cudnn
from longred.attention.sdpa import Rules, attend_sdpa

HEADS, KEY_HEADS, TOKENS = 4, 2, 256

FAMILIES = (
    ("cuDNN", ("cudnn",)),
    ("FlashAttention", ("flash", "_varlen_attn")),
    ("memory-efficient", ("fmha", "efficient_attention", "attentionkernel")),
    ("math", ("scaled_dot_product_attention_math", "softmax")),
)
"""Kernel families and the lower-case parts of names by which they are recognised."""


def kernel_report(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> dict[str, str]:
    """Return the kernels that backend sdpa runs, forward and backward, and the loaded cuDNN.

    Runs every kind of call once on a few hundred tokens, with fewer key heads than query heads.

    Args:
        device: device to run on.
        dtype: dtype of queries, keys and values.
        head_dim: head dimension of queries, keys and values.

    Returns:
        `rows`, `documents` and `window` name a family and, on a GPU, its kernels:
        `cuDNN (forward_kernel, backward_kernel)`. On CUDA also the values of `loaded_cudnn`.
    """
    device = torch.device(device)
    two_documents = find_documents(torch.arange(TOKENS)[None] // (TOKENS // 2), device)
    kinds = {
        "rows": Rules(),
        "documents": Rules(documents=two_documents),
        "window": Rules(window=TOKENS // 4),
    }
    report = {kind: _ran(device, dtype, head_dim, rules) for kind, rules in kinds.items()}
    return report | (loaded_cudnn() if device.type == "cuda" else {})


def _ran(device: torch.device, dtype: torch.dtype, head_dim: int, rules: Rules) -> str:
    query, key, value = (
        torch.randn(1, heads, TOKENS, head_dim, device=device, dtype=dtype, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as profiler:
        output = attend_sdpa(query, key, value, rules)
        torch.autograd.grad(output.sum(), (query, key, value))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    events = profiler.events() or []
    kernels = [e.name for e in events if e.device_type.name == "CUDA"]
    operators = [e.name for e in events if e.device_type.name == "CPU"]
    return name_kernels(kernels, operators)


def name_kernels(kernels: list[str], operators: list[str]) -> str:
    """Return the family of what ran, with the names of its kernels if known.

    Operators only count if no kernel is recognised: some containers do not let the profiler see
    kernels.
    """
    for names in (kernels, operators):
        for family, parts in FAMILIES:
            found = [n for n in names if any(part in n.lower() for part in parts)]
            if found and names is operators:
                return family
            if found:
                return f"{family} ({', '.join(dict.fromkeys(map(_short, found)))})"
    return "unknown"


def _short(kernel: str) -> str:
    """Return a kernel's name without its return type, template and arguments."""
    name = re.sub(r"^void ", "", re.split(r"[<(]", kernel, maxsplit=1)[0])
    inner = re.search(r"FlashAttn\w+", kernel)
    # CUTLASS launches everything with one function; its template names the kernel.
    return inner.group() if inner and name.startswith("cutlass::") else name
