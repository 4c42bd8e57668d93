"""The order of torch's kernels by kind of call, and the cost of documents."""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_kernels import draw, packed
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from longred.attention import kernels, sdpa
from longred.attention.backends import BACKENDS
from longred.attention.documents import find_documents, whole_rows
from longred.attention.kernels import kernel_order
from longred.attention.sdpa import Rules

CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
EFFICIENT, MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def marked(test: Callable[..., None]) -> Callable[..., None]:
    for mark in on_a_gpu:
        test = mark(test)
    return test


# --- The order of the kernels -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "order"),
    [
        ((7, 5), (FLASH, CUDNN, EFFICIENT, MATH)),
        ((8, 0), (FLASH, CUDNN, EFFICIENT, MATH)),
        ((8, 9), (FLASH, CUDNN, EFFICIENT, MATH)),
        ((9, 0), (CUDNN, FLASH, EFFICIENT, MATH)),
        ((10, 0), (CUDNN, FLASH, EFFICIENT, MATH)),
        ((12, 0), (FLASH, CUDNN, EFFICIENT, MATH)),
    ],
)
def test_cudnn_comes_first_where_it_is_fastest_and_for_whole_rows_alone(
    capability: tuple[int, int], order: tuple[SDPBackend, ...]
) -> None:
    assert kernel_order(capability, "rows", deterministic=False) == order
    for kind in ("documents", "decoding"):
        found = kernel_order(capability, kind, deterministic=False)
        assert found == (FLASH, EFFICIENT, MATH)
    assert kernel_order(capability, "masked", deterministic=False) == (EFFICIENT, MATH)


@pytest.mark.parametrize("kind", ["rows", "documents", "decoding", "masked"])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0), (12, 0)])
def test_deterministic_runs_never_try_cudnn(
    capability: tuple[int, int], kind: kernels.CallKind
) -> None:
    order = kernel_order(capability, kind, deterministic=True)
    assert CUDNN not in order
    assert order[0] is (EFFICIENT if kind == "masked" else FLASH)
    assert order[-1] is MATH


class Asked(list[str]):
    """Records the kind of each call of `using_kernels`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        original = kernels.using_kernels

        def spy(device: torch.device, kind: kernels.CallKind) -> Any:
            self.append(kind)
            return original(device, kind)

        monkeypatch.setattr(sdpa, "using_kernels", spy)


def test_every_call_of_torchs_kernels_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    query, key, value = draw(torch.float32)
    attend = BACKENDS["sdpa"].attend
    attend(query, key, value, Rules())
    attend(query, key, value, Rules(window=7))
    attend(query, key, value, Rules(documents=find_documents(packed())))
    attend(query[:, :, -1:], key, value, Rules())
    attend(query[:, :, -9:], key, value, Rules())
    with torch.no_grad():  # in parts, by the one kernel that serves
        attend(query[:, :, -9:], key, value, Rules())
    attend(query, key, value, Rules(softcap=1.0))
    documents = ["documents"] * 4
    assert asked == ["rows", "masked", *documents, "decoding", "masked"]


@marked
@pytest.mark.parametrize("kind", ["rows", "documents", "decoding", "masked"])
def test_the_order_is_set_on_a_gpu(kind: kernels.CallKind) -> None:
    device = torch.device("cuda:0")
    before = torch._C._get_sdp_priority_order()
    order = kernel_order(kernels.capability_of(device), kind, deterministic=False)
    with kernels.using_kernels(device, kind):
        assert torch._C._get_sdp_priority_order()[: len(order)] == [int(k.value) for k in order]
        assert torch.backends.cuda.cudnn_sdp_enabled() == (CUDNN in order)
    assert torch._C._get_sdp_priority_order() == before


# --- Documents ----------------------------------------------------------------------------------


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("num_documents", [2, 8])
def test_documents_cost_no_gradients_of_whole_tensors(num_documents: int) -> None:
    ids = torch.arange(40).expand(2, -1) // (40 // num_documents)
    tensors = draw(torch.float32)
    output = BACKENDS["sdpa"].attend(*tensors, Rules(documents=find_documents(ids)))
    with Operators() as operators:
        torch.autograd.grad(output.sum(), tensors)
    backward = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
    assert operators.seen[backward] == num_documents
    assert operators.seen["aten::slice_backward"] == 0
    assert operators.seen["aten::add"] == 0
    assert operators.seen["aten::new_zeros"] + operators.seen["aten::zeros"] == 0


def test_rows_are_documents_in_the_form_of_packed_ones() -> None:
    ids = torch.arange(3)[:, None].expand(-1, 5)
    found = whole_rows(3, 5, torch.device("cpu"))
    packed_row = find_documents(ids.reshape(1, -1))
    assert packed_row is not None
    assert torch.equal(found.cu_seqlens, packed_row.cu_seqlens)
    assert found.cu_seqlens.dtype == torch.int32
    assert found.max_length == packed_row.max_length == 5
    assert found.bounds == (((0, 5),),) * 3


def test_ends_of_documents_go_where_they_are_wanted() -> None:
    documents = find_documents(packed(), torch.device("meta"))
    assert documents is not None
    assert documents.cu_seqlens.device.type == "meta"
    assert documents.bounds == (((0, 5), (5, 30), (30, 40)), ((0, 40),))


@marked
@pytest.mark.parametrize(("device", "waits"), [("cuda", 1), ("cpu", 0)])
def test_the_host_waits_once_for_document_ids_at_most(device: str, waits: int) -> None:
    ids = packed().to(device)
    find_documents(ids, torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            documents = find_documents(ids, torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in caught if "synchronizing" in str(w.message)]) == waits
    assert documents is not None
    assert documents.cu_seqlens.tolist() == [0, 5, 30, 40, 80]
