"""Which of torch's kernels run for which call, and what its varlen function is called with.

The varlen function itself runs here: the one operator under it that needs a GPU, FlashAttention's,
is given a CPU form that computes by the formula.
"""

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from test_kernels import RULES, check, dense, draw, packed
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from longred.activations import _policy
from longred.attention import (
    BACKENDS,
    Rules,
    find_documents,
    kernel_order,
    kernel_report,
    kernels,
    sdpa,
    varlen,
)
from longred.attention.cudnn import cudnn_folders, loaded_cudnn, readable_version
from longred.attention.documents import whole_rows
from longred.attention.probe import name_kernels

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
    """The kinds of call that were asked for, one each call of `using_kernels`."""

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


# --- torch's varlen function --------------------------------------------------------------------


def as_flash(tensors: tuple[Tensor, ...], ends: Tensor, **given: Any) -> Tensor:
    """What FlashAttention's documentation says, by the formula and document by document."""
    assert all(x.dtype == torch.bfloat16 and x.stride(-1) == 1 for x in tensors)
    assert ends.dtype == torch.int32
    lengths = torch.diff(ends).tolist()
    assert given["max_length"] == max(lengths)
    left, right = given["left"], given["right"]
    assert right == 0 or given["is_causal"]
    rules = Rules(given["scale"], window=None if left == -1 else left + 1)
    parts = zip(*(x.split(lengths) for x in tensors), strict=True)
    alone = (
        dense(*(x.transpose(0, 1)[None] for x in document), rules, None)[0] for document in parts
    )
    return torch.cat(list(alone)).to(torch.bfloat16)


def flash_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    ends_k: Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    **others: Any,
) -> tuple[Tensor, ...]:
    assert dropout == 0.0
    assert max_q == max_k
    assert torch.equal(ends, ends_k)
    assert all(value is None for value in others.values())
    output = as_flash(
        (query, key, value),
        ends,
        max_length=max_q,
        is_causal=is_causal,
        scale=scale,
        left=window_size_left,
        right=window_size_right,
    )
    lse = query.new_zeros(query.shape[1], query.shape[0], dtype=torch.float32)
    none = query.new_zeros(0)
    return output, lse, torch.zeros(2, dtype=torch.uint64), none, none


def flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    ends: Tensor,
    ends_k: Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    is_causal: bool,
    *generator: Tensor,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[Tensor, ...]:
    def gradients() -> tuple[Tensor, ...]:
        tensors = tuple(x.detach().requires_grad_() for x in (query, key, value))
        output = as_flash(
            tensors,
            ends,
            max_length=max_q,
            is_causal=is_causal,
            scale=scale,
            left=window_size_left,
            right=window_size_right,
        )
        return torch.autograd.grad(output, tensors, grad)

    # An operator runs without autograd; a thread of its own begins with it.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(gradients).result()


@pytest.fixture
def flash_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make torch's varlen function run without a GPU, and the attention choose it."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", flash_forward, "CPU")
    library.impl("_flash_attention_backward", flash_backward, "CPU")
    monkeypatch.setattr(sdpa, "supports", lambda *_: True)
    yield
    library._destroy()


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("name", ["causal", "scale", "window"])
@pytest.mark.parametrize("ids", [None, packed()], ids=["whole", "documents"])
def test_varlen_attention_is_the_formula(
    name: str, ids: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(monkeypatch)
    check("sdpa", draw(torch.bfloat16), RULES[name], ids, 2e-2)
    is_plain = ids is None and RULES[name].window is None
    assert asked == (["rows"] if is_plain else [])


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize(
    ("rules", "queries"),
    [(Rules(softcap=1.5, window=7), 40), (Rules(dropout=0.1, window=7), 40), (Rules(window=7), 9)],
    ids=["softcap", "dropout", "cache"],
)
def test_what_varlen_attention_does_not_do_goes_another_way(
    rules: Rules, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdpa, "attend_varlen", None)
    query, key, value = draw(torch.bfloat16)
    output = BACKENDS["sdpa"].attend(query[:, :, -queries:], key, value, rules)
    assert output.shape == (2, queries, 4, 16)


@pytest.mark.usefixtures("flash_on_cpu")
def test_varlen_under_autocast_takes_the_type_of_the_values() -> None:
    query, key, value = draw(torch.float32)
    rules = Rules(documents=find_documents(packed()))
    assert BACKENDS["sdpa"].attend(query, key, value.bfloat16(), rules).dtype == torch.bfloat16


@pytest.mark.usefixtures("flash_on_cpu")
def test_selective_checkpointing_holds_the_outputs_of_varlen_attention() -> None:
    tensors, rules = draw(torch.bfloat16), Rules(documents=find_documents(packed()))
    seen = []
    for context in ({}, {"context_fn": lambda: create_selective_checkpoint_contexts(_policy)}):
        with Operators() as operators:
            output = checkpoint(
                BACKENDS["sdpa"].attend, *tensors, rules, use_reentrant=False, **context
            )
            torch.autograd.grad(output.sum(), tensors)
        seen.append(operators.seen)
    again, once = (each["torch_attn::_varlen_attn"] for each in seen)
    assert (again, once) == (2, 1)


def test_fewer_key_heads_are_asked_for_where_torch_wants_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def before_212(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        return_aux: Any = None,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:
        assert window_size == (6, 0)
        return query.clone()

    from torch.nn.attention import varlen as torchs

    is_asked = "enable_gqa" in inspect.signature(torchs.varlen_attn).parameters
    varlen.load.cache_clear()
    options = getattr(varlen.load(), "keywords", {})
    assert options == ({"enable_gqa": True} if is_asked else {})
    monkeypatch.setattr(torchs, "varlen_attn", before_212)
    varlen.load.cache_clear()
    tensors = draw(torch.bfloat16)
    rows = whole_rows(2, 40, torch.device("cpu"))
    output = varlen.attend_varlen(*tensors, rows, window=7)
    varlen.load.cache_clear()
    assert torch.equal(output, tensors[0].transpose(1, 2))


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "head_dim", "is_supported"),
    [
        ("cuda", (9, 0), torch.bfloat16, 128, True),
        ("cuda", (8, 0), torch.float16, 64, True),
        ("cuda", (12, 0), torch.bfloat16, 256, True),
        ("cuda", (9, 0), torch.bfloat16, 80, True),
        ("cuda", (9, 0), torch.bfloat16, 208, False),
        ("cuda", (9, 0), torch.bfloat16, 320, False),
        ("cuda", (9, 0), torch.bfloat16, 100, False),
        ("cuda", (9, 0), torch.float32, 128, False),
        ("cuda", (7, 5), torch.float16, 128, False),
        ("cpu", (0, 0), torch.bfloat16, 128, False),
    ],
)
@pytest.mark.parametrize("has_flash", [True, False])
def test_what_varlen_attention_supports(
    device: str,
    capability: tuple[int, int],
    dtype: torch.dtype,
    head_dim: int,
    is_supported: bool,
    has_flash: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: has_flash)
    found = varlen.supports(torch.device(device), capability, dtype, head_dim)
    assert found == (is_supported and has_flash)


def draw_on_gpu(length: int, head_dim: int) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, heads, length, head_dim) for heads in (4, 2, 2)]
    return [torch.randn(s, device="cuda", dtype=torch.bfloat16).requires_grad_() for s in shapes]


@marked
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("has_documents", [False, True])
def test_torchs_kernels_on_a_gpu_are_the_formula(
    head_dim: int, window: int | None, has_documents: bool
) -> None:
    ids = packed(384).cuda() if has_documents else None
    check("sdpa", draw_on_gpu(384, head_dim), Rules(window=window), ids, 2e-2)


@marked
@pytest.mark.parametrize("kind", ["rows", "documents", "window", "fp32"])
def test_deterministic_gradients_are_equal_bit_for_bit_on_a_gpu(kind: str) -> None:
    tensors = draw_on_gpu(2048, 128)
    if kind == "fp32":
        tensors = [x.detach().float().requires_grad_() for x in tensors]
    documents = find_documents(packed(2048).cuda()) if kind == "documents" else None
    rules = Rules(documents=documents, window=300 if kind == "window" else None)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [
            torch.autograd.grad(BACKENDS["sdpa"].attend(*tensors, rules).square().sum(), tensors)
            for _ in range(5)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


# --- Which kernels ran --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_report_names_what_the_cpu_runs(dtype: torch.dtype) -> None:
    family = "FlashAttention"
    report = kernel_report("cpu", dtype, 64)
    assert report == {"rows": family, "documents": family, "window": family}


@pytest.mark.parametrize(
    ("kernels", "operators", "name"),
    [
        (
            [
                "void at::native::elementwise_kernel<128, 4>(int)",
                "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3",
                "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26",
            ],
            ["aten::_scaled_dot_product_flash_attention"],
            "cuDNN (cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3, "
            "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26)",
        ),
        (
            [
                "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64>>(Params)",
                "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 64>>(Params)",
            ],
            [],
            "FlashAttention (pytorch_flash::flash_fwd_kernel)",
        ),
        (
            ["void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<int>>>(P)"],
            [],
            "FlashAttention (FlashAttnFwdSm90)",
        ),
        (
            ["fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel)"],
            [],
            "memory-efficient (fmha_cutlassF_bf16_aligned_64x128_rf_sm80)",
        ),
        (
            ["void (anonymous namespace)::softmax_warp_forward<float, float>(float*)"],
            ["aten::_scaled_dot_product_attention_math"],
            "math",
        ),
        ([], ["aten::mul", "aten::_scaled_dot_product_cudnn_attention"], "cuDNN"),
        ([], ["torch_attn::_varlen_attn"], "FlashAttention"),
        ([], ["aten::_scaled_dot_product_efficient_attention"], "memory-efficient"),
        ([], ["aten::_scaled_dot_product_attention_math"], "math"),
        ([], ["aten::mul"], "unknown"),
    ],
)
def test_kernels_are_named_by_family(kernels: list[str], operators: list[str], name: str) -> None:
    found = name_kernels(kernels, operators)
    assert found == name or (name == "math" and found.startswith("math ("))


OWN = "/opt/venv/lib/python3.12/site-packages/nvidia/cudnn/lib"
SYSTEM = "/usr/lib/x86_64-linux-gnu"


@pytest.mark.parametrize(
    ("folders", "path", "origin"),
    [
        ([OWN, OWN], OWN, "torch"),
        ([SYSTEM], SYSTEM, "system"),
        ([OWN, SYSTEM], f"{OWN}, {SYSTEM}", "mixed"),
        ([], "inside torch", "torch"),
    ],
)
def test_a_cudnn_that_hides_torchs_is_told(folders: list[str], path: str, origin: str) -> None:
    names = ("libcudnn.so.9.19.0", "libcudnn_graph.so.9")
    lines = [
        f"7f0{number}00000-7f0{number}10000 r-xp 00000000 08:01 {number}   {folder}/{name}"
        for number, (folder, name) in enumerate(zip(folders, names, strict=False))
    ]
    lines += ["7ffe0000-7ffe1000 rw-p 00000000 00:00 0 ", f"7f-8f r-xp 0 08:01 9 {SYSTEM}/libc.so"]
    expected = {"cudnn_path": path, "cudnn_origin": origin}
    assert cudnn_folders("\n".join(lines)) == expected


def test_cudnn_versions_are_readable() -> None:
    assert readable_version(91900) == "9.19.0"
    assert readable_version(90701) == "9.7.1"
    assert readable_version(8902) == "8.9.2"
    if not torch.backends.cudnn.is_available():
        assert loaded_cudnn() == {}


@marked
def test_the_report_on_a_gpu_names_the_kernels_of_the_order() -> None:
    report = kernel_report("cuda", torch.bfloat16, 128)
    major = torch.cuda.get_device_capability()[0]
    first = "cuDNN" if major in kernels.CUDNN_FIRST else "FlashAttention"
    assert report["rows"].startswith(first), report
    assert report["documents"].startswith("FlashAttention"), report
    assert report["window"].startswith("FlashAttention"), report
    assert report["cudnn_version"] == readable_version(torch.backends.cudnn.version())
    assert kernel_report("cuda", torch.float32, 128)["rows"].startswith("memory-efficient")
