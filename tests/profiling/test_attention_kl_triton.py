"""The Triton kernel; on a GPU, or on the CPU under TRITON_INTERPRET=1 where Triton is installed."""

import os

import pytest
import torch
from torch import Tensor

from longred.profiling.attention_kl import Problem, attention_kl, blockwise, first_seen

triton = pytest.importorskip("triton")
from longred.profiling.attention_kl_triton import statistics  # noqa: E402 - needs Triton

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not IS_INTERPRETED and not torch.cuda.is_available(), reason="needs a CUDA device"
    ),
]


def problem(
    dtype: torch.dtype, length: int, dim: int, *, documents: bool, window: int | None, size: float
) -> Problem:
    torch.manual_seed(0)
    query, key = size * torch.randn(2, 4, length, dim), torch.randn(2, 2, length, dim)
    tensors = [
        (x + noise * torch.randn_like(x)).to(DEVICE, dtype)
        for noise in (0.0, 0.3)
        for x in (query, key)
    ]
    ids_BT = None
    if documents:
        ids_BT = torch.zeros(2, length, dtype=torch.int32, device=DEVICE)
        ids_BT[0, length // 3 :] = 1
        ids_BT[0, length // 2 :] = 2
        ids_BT[1, length - 1 :] = 5
    return Problem(*tensors, dim**-0.5, first_seen(tensors[0], ids_BT, window))


def in_float64(problem: Problem) -> tuple[Tensor, ...]:
    tensors = [x.cpu().double() for x in problem[:4]]
    first_BT = None if problem.first_BT is None else problem.first_BT.cpu()
    return blockwise(Problem(*tensors, problem.scale, first_BT))


CONFIG = triton.Config({"BLOCK_Q": 32, "BLOCK_K": 16}, num_warps=4, num_stages=1)


# The interpreter multiplies bf16 as if it were whole numbers.
DTYPES = [torch.float32, torch.float16, *([] if IS_INTERPRETED else [torch.bfloat16])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 33, 77])
@pytest.mark.parametrize("dim", [16, 40])
@pytest.mark.parametrize(
    ("documents", "window"), [(False, None), (False, 7), (True, None), (True, 20)]
)
def test_equals_the_blockwise_statistics_in_float64(
    dtype: torch.dtype, length: int, dim: int, documents: bool, window: int | None
) -> None:
    case = problem(dtype, length, dim, documents=documents, window=window, size=2.0)
    expected = in_float64(case)
    for got, wanted in zip(statistics(case, CONFIG), expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.cpu().double(), wanted, atol=5e-6, rtol=1e-5)


def test_strong_logits_stay_exact() -> None:
    case = problem(torch.float32, 65, 16, documents=False, window=None, size=60.0)
    expected = in_float64(case)
    for got, wanted in zip(statistics(case, CONFIG), expected, strict=True):
        torch.testing.assert_close(got.cpu().double(), wanted, atol=3e-4, rtol=1e-4)


def test_tensors_may_be_views() -> None:
    case = problem(torch.float32, 33, 16, documents=False, window=None, size=1.0)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in case[:4]]
    for got, wanted in zip(
        statistics(Problem(*views, case.scale, None), CONFIG),
        statistics(case, CONFIG),
        strict=True,
    ):
        assert torch.equal(got, wanted)


@pytest.mark.skipif(IS_INTERPRETED, reason="needs a CUDA device: block sizes are timed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_attention_kl_is_the_kernel_with_gradients(dtype: torch.dtype) -> None:
    case = problem(dtype, 515, 128, documents=False, window=200, size=1.0)
    student = [x.clone().requires_grad_() for x in case[2:4]]
    kl_BHT = attention_kl(*case[:2], *student, sliding_window=200)
    kl_BHT.sum().backward()
    exact = [x.detach().cpu().double() for x in case[:4]]
    student_exact = [x.requires_grad_() for x in exact[2:]]
    expected = attention_kl(*exact[:2], *student_exact, sliding_window=200)
    expected.sum().backward()
    torch.testing.assert_close(
        kl_BHT.detach().cpu().double(), expected.detach(), atol=1e-5, rtol=1e-3
    )
    for got, wanted in zip(student, student_exact, strict=True):
        assert got.grad is not None
        torch.testing.assert_close(got.grad.cpu().double(), wanted.grad, atol=2e-2, rtol=2e-2)
