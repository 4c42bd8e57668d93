"""Errors of the kernel's fp32 products on emulated tensor cores, against float64."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

Round = Callable[[Tensor], Tensor]
LENGTH, DIM = 512, 128
SCALE = DIM**-0.5


def to_bf16(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def to_tf32(x: Tensor) -> Tensor:
    """Round to 10 fraction bits, ties away from zero."""
    return ((x.view(torch.int32) + 2**12) & -(2**13)).view(torch.float32)


def parts(x: Tensor, round_: Round) -> list[Tensor]:
    result = []
    for _ in range(3):
        result.append(round_(x))
        x = x - result[-1]
    return result


def cut(x: Tensor) -> Tensor:
    """Round float64 to fp32 towards zero."""
    near = x.float()
    return torch.where(near.double().abs() > x.abs(), near.nextafter(torch.zeros(())), near)


def products(
    query: Tensor, key: Tensor, round_: Round, pairs: Iterable[tuple[int, int]], step: int
) -> Tensor:
    """Sum products of parts, `step` dimensions per instruction, truncating every sum."""
    queries, keys = parts(query, round_), parts(key, round_)
    total = torch.zeros(len(query), len(key))
    for i, j in pairs:
        for low in range(0, DIM, step):
            of_query, of_key = (x[:, low : low + step].double() for x in (queries[i], keys[j]))
            total = cut(total.double() + of_query @ of_key.T)
    return total


BF16X6 = [(1, 1), (2, 0), (0, 2), (1, 0), (0, 1), (0, 0)]
WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fp32": lambda query, key: query @ key.T,
    "bf16x6": lambda query, key: products(query, key, to_bf16, BF16X6, 16),
    "tf32x3": lambda query, key: products(query, key, to_tf32, [(1, 0), (0, 1), (0, 0)], 8),
    "bf16": lambda query, key: products(query, key, to_bf16, [(0, 0)], 16),
}


def kl(tensors: list[Tensor], way: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    unseen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    t, s = (
        (way(query, key).double() * SCALE).masked_fill(unseen, -torch.inf).log_softmax(-1)
        for query, key in (tensors[:2], tensors[2:])
    )
    return (t.exp() * (t - s).masked_fill(unseen, 0.0)).sum(-1)


@pytest.mark.parametrize(
    ("size", "noise", "largest"),
    [(1, 0.01, 2e-8), (6, 0.02, 2e-6), (30, 0.02, 5e-5), (60, 0.3, 2e-3)],
)
def test_six_products_of_bf16_lose_no_more_than_fp32(
    size: float, noise: float, largest: float
) -> None:
    torch.manual_seed(0)
    query, key = (size**0.5 * torch.randn(LENGTH, DIM) for _ in range(2))
    near = [x + noise * size**0.5 * torch.randn_like(x) for x in (query, key)]
    tensors = [query, key, *near]
    exact = kl([x.double() for x in tensors], lambda query, key: query @ key.T)
    errors = {name: float((kl(tensors, way) - exact).abs().max()) for name, way in WAYS.items()}
    assert errors["bf16x6"] < largest
    assert errors["bf16x6"] < 2 * errors["fp32"]
    assert errors["bf16x6"] < 2 * errors["tf32x3"]
    assert errors["bf16"] > 500 * errors["bf16x6"]
