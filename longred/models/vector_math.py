"""A warm-up of MKL's vector math, without which equal trainings may get different bits on a CPU."""

from functools import cache

import torch

VECTOR_MATH = (
    "acos",
    "asin",
    "atan",
    "cos",
    "cosh",
    "erf",
    "erfc",
    "erfinv",
    "exp",
    "expm1",
    "lgamma",
    "log",
    "log10",
    "log1p",
    "log2",
    "rsqrt",
    "sigmoid",
    "sin",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
    "trunc",
)
"""Functions of tensors that torch may hand to MKL on CPUs."""


@cache
def warm_up_vector_math() -> None:
    """Call each of MKL's vector functions once, on one thread.

    MKL before 2025.0, which torch 2.13 carries, chooses a function's kernel during its first call.
    If several threads make that call together, one of them can run a kernel with relative errors of
    1e-4 for its part of the tensor (pytorch/pytorch#188792): measured in 5 of 60 processes.
    """
    for dtype in (torch.float32, torch.float64):
        one = torch.full((1,), 0.5, dtype=dtype)
        for name in VECTOR_MATH:
            getattr(one, name)()
