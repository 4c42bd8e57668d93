"""The Triton kernel against float64: on a GPU, or else interpreted on the CPU."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import interpreted
import pytest
import torch
from torch import Tensor

from longred.objectives.relations import first_seen
from longred.profiling.attention_kl import attention_kl
from longred.profiling.problem import Problem, Statistics

triton = pytest.importorskip("triton")

ON_GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
pytestmark = [pytest.mark.gpu] if ON_GPU else []
DEVICE = "cuda" if ON_GPU else "cpu"
# The interpreter multiplies bf16 as integers.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]

Run = Callable[[Problem, dict[str, Any] | None], Statistics]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Run the kernel: on the GPU in this process, or else interpreted in another one."""
    if ON_GPU:
        yield interpreted.statistics
        return
    with interpreted.interpreter() as process:
        yield lambda problem, sizes: process.submit(interpreted.statistics, problem, sizes).result()


def sizes(queries: int, keys: int, chunk: int, warps: int = 4, stages: int = 1) -> dict[str, Any]:
    kwargs = {"BLOCK_Q": queries, "BLOCK_K": keys, "CHUNK_D": chunk}
    return {"kwargs": kwargs, "num_warps": warps, "num_stages": stages}


def make(
    dtype: torch.dtype,
    length: int,
    dim: int,
    *,
    documents: bool = False,
    window: int | None = None,
    size: float = 2.0,
    heads: tuple[int, int] = (4, 2),
    rows: int = 2,
) -> Problem:
    torch.manual_seed(0)
    query = size * torch.randn(rows, heads[0], length, dim)
    key = torch.randn(rows, heads[1], length, dim)
    tensors = [
        (x + noise * torch.randn_like(x)).to(DEVICE, dtype)
        for noise in (0.0, 0.3)
        for x in (query, key)
    ]
    ids_BT = None
    if documents:
        ids_BT = torch.zeros(rows, length, dtype=torch.int32, device=DEVICE)
        ids_BT[0, length // 3 :] = 1
        ids_BT[0, length // 2 :] = 2
        ids_BT[-1, length - 1 :] = 5
    return Problem(*tensors, dim**-0.5, first_seen(tensors[0], ids_BT, window))


def in_float64(problem: Problem) -> tuple[Tensor, ...]:
    """Compute the kernel's results from dense attention maps."""
    place_T = torch.arange(problem.teacher_query_BHTd.shape[2])
    unseen_BTT = (place_T > place_T[:, None])[None]
    if problem.first_BT is not None:
        unseen_BTT = unseen_BTT | (place_T < problem.first_BT.cpu()[..., None])
    logits = []
    for query, key in (problem[:2], problem[2:4]):
        query, key = query.cpu().double(), key.cpu().double()
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        logits.append((query @ key.mT * problem.scale).masked_fill(unseen_BTT[:, None], -torch.inf))
    t, s = (x.log_softmax(-1) for x in logits)
    kl_BHT = (t.exp() * (t - s).masked_fill(unseen_BTT[:, None], 0.0)).sum(-1)
    return kl_BHT, logits[0].logsumexp(-1), logits[1].logsumexp(-1)


def check(got: Statistics, problem: Problem, atol: float = 5e-6, rtol: float = 1e-5) -> None:
    for value, wanted in zip(got, in_float64(problem), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.cpu().double(), wanted, atol=atol, rtol=rtol)


@pytest.mark.medium
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 77])
@pytest.mark.parametrize(
    ("documents", "window"), [(False, None), (False, 7), (True, None), (True, 20)]
)
def test_equals_float64_under_every_mask(
    run: Run, dtype: torch.dtype, length: int, documents: bool, window: int | None
) -> None:
    case = make(dtype, length, 40, documents=documents, window=window)
    check(run(case, sizes(64, 32, 64)), case)


@pytest.mark.medium
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("is_whole", [True, False])
def test_equals_float64_at_every_head_size(
    run: Run, dtype: torch.dtype, dim: int, is_whole: bool
) -> None:
    case = make(dtype, 77, dim, documents=True, window=20, heads=(3, 1))
    chunk = triton.next_power_of_2(dim) if is_whole else 32
    check(run(case, sizes(64, 32, chunk)), case)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "length"), [(96, 195), (256, 135)])
def test_every_configuration_equals_float64(
    run: Run, dtype: torch.dtype, dim: int, length: int
) -> None:
    # Import only the table of configurations: this process must still be able to compile kernels.
    from longred.profiling.attention_kl_triton import configurations

    case = make(dtype, length, dim, window=100, heads=(2, 1), rows=1)
    for capability in [torch.cuda.get_device_capability()] if ON_GPU else [(9, 0), (8, 0)]:
        for config in configurations(dtype, dim, capability):
            chosen = {"num_warps": config.num_warps, "num_stages": config.num_stages}
            check(run(case, {"kwargs": config.kwargs, **chosen}), case)


@pytest.mark.medium
@pytest.mark.parametrize("chunk", [16, 64])
def test_strong_logits_stay_exact(run: Run, chunk: int) -> None:
    case = make(torch.float32, 65, 64, size=60.0)
    check(run(case, sizes(64, 32, chunk)), case, atol=5e-4, rtol=1e-4)


@pytest.mark.medium
@pytest.mark.parametrize("chunk", [16, 64])
def test_tensors_may_be_views(run: Run, chunk: int) -> None:
    case = make(torch.float32, 33, 64, heads=(2, 1))
    by_token = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in case[:4]]
    by_dimension = [x.mT.contiguous().mT for x in case[:4]]
    wanted = run(case, sizes(64, 32, chunk))
    for views in (by_token, by_dimension):
        got = run(Problem(*views, case.scale, None), sizes(64, 32, chunk))
        for value, expected in zip(got, wanted, strict=True):
            assert torch.equal(value, expected)


@pytest.mark.medium
def test_equal_models_are_at_no_distance(run: Run) -> None:
    case = make(torch.float32, 33, 64)
    same = Problem(*case[:2], *case[:2], case.scale, None)
    assert run(same, sizes(32, 16, 32)).kl_BHT.abs().max() < 1e-6


@pytest.mark.medium
def test_what_the_kernel_cannot_do_is_refused(run: Run) -> None:
    case = make(torch.float32, 9, 16)
    with pytest.raises(ValueError, match="one type on one device and no soft cap"):
        run(case._replace(softcap=30.0), sizes(32, 16, 16))
    with pytest.raises(ValueError, match="one type on one device and no soft cap"):
        run(case._replace(student_key_BhTd=case.student_key_BhTd.half()), sizes(32, 16, 16))


@pytest.mark.medium
@pytest.mark.skipif(ON_GPU, reason="a GPU times the configurations itself")
@pytest.mark.parametrize("window", [None, 20])
def test_configurations_are_timed_once(window: int | None) -> None:
    case = make(torch.float16, 77, 64, window=window, heads=(2, 1), rows=1)
    with interpreted.interpreter() as process:
        got, num_timings, known = process.submit(interpreted.tuned_statistics, case).result()
    check(got, case)
    assert num_timings == 4
    assert len(known) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device: block sizes are timed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_attention_kl_is_the_kernel_with_gradients(dtype: torch.dtype) -> None:
    case = make(dtype, 515, 128, size=1.0)
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


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_tensors_need_not_be_on_the_current_device() -> None:
    case = make(torch.float32, 77, 64)
    moved = Problem(*(x.to("cuda:1") for x in case[:4]), case.scale, None)
    check(interpreted.statistics(moved, None), case)
