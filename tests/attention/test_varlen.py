"""Arguments and results of torch's varlen function.

The function itself runs on the CPU. It calls one operator that needs a GPU, FlashAttention's, which
is replaced by a CPU implementation of the formula.
"""

import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from test_kernels import RULES, check, dense, draw, packed
from test_torch_kernels import Asked, Operators, marked
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from longred.attention import sdpa
from longred.attention.backends import BACKENDS
from longred.attention.documents import find_documents, whole_rows
from longred.attention.sdpa import Rules
from longred.training.layers.activations import _policy


def as_flash(
    tensors: tuple[Tensor, ...],
    ends: Tensor,
    ends_k: Tensor,
    used_k: Tensor | None = None,
    **given: Any,
) -> Tensor:
    """Compute what FlashAttention documents: the formula, applied to each document.

    The queries of a document are those of its last keys; of its keys only `used_k` count.
    """
    assert all(x.dtype == torch.bfloat16 and x.stride(-1) == 1 for x in tensors)
    assert ends.dtype == ends_k.dtype == torch.int32
    lengths, lengths_k = torch.diff(ends).tolist(), torch.diff(ends_k).tolist()
    assert given["max_lengths"] == (max(lengths), max(lengths_k))
    used = lengths_k if used_k is None else used_k.tolist()
    assert used_k is None or used_k.dtype == torch.int32
    left, right = given["left"], given["right"]
    # One query per row sees all keys with and without a causal mask.
    assert right == 0 or given["is_causal"] or set(lengths) == {1}
    rules = Rules(given["scale"], window=None if left == -1 else left + 1)
    sizes = (lengths, lengths_k, lengths_k)
    parts = zip(*(x.split(n) for x, n in zip(tensors, sizes, strict=True)), strict=True)
    alone = (
        dense(*(x.transpose(0, 1)[None] for x in (q, k[:n], v[:n])), rules, None)[0]
        for (q, k, v), n in zip(parts, used, strict=True)
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
    used_k = others.pop("seqused_k", None)
    assert all(value is None for value in others.values())
    output = as_flash(
        (query, key, value),
        ends,
        ends_k,
        used_k,
        max_lengths=(max_q, max_k),
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
            ends_k,
            max_lengths=(max_q, max_k),
            is_causal=is_causal,
            scale=scale,
            left=window_size_left,
            right=window_size_right,
        )
        return torch.autograd.grad(output, tensors, grad)

    # Operators run with autograd disabled; a new thread has it enabled.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(gradients).result()


@pytest.fixture
def flash_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch's varlen function run without a GPU, and let sdpa choose it."""
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
    [(Rules(softcap=1.5, window=7), 40), (Rules(dropout=0.1, window=7), 40), (Rules(), 1)],
    ids=["softcap", "dropout", "step"],
)
def test_what_varlen_attention_does_not_do_goes_another_way(
    rules: Rules, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdpa, "attend_varlen", None)
    query, key, value = draw(torch.bfloat16)
    output = BACKENDS["sdpa"].attend(query[:, :, -queries:], key, value, rules)
    assert output.shape == (2, queries, 4, 16)


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("window", [None, 7])
def test_the_last_queries_see_cached_keys(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(monkeypatch)
    query, key, value = draw(torch.bfloat16)
    rules = Rules(window=window)
    output = BACKENDS["sdpa"].attend(query[:, :, -9:], key, value, rules)
    assert asked == []
    whole = dense(*(x.double() for x in (query, key, value)), rules, None)
    torch.testing.assert_close(output.double(), whole[:, -9:], atol=2e-2, rtol=2e-2)


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
    sdpa.load_varlen.cache_clear()
    options = getattr(sdpa.load_varlen(), "keywords", {})
    assert options == ({"enable_gqa": True} if is_asked else {})
    monkeypatch.setattr(torchs, "varlen_attn", before_212)
    sdpa.load_varlen.cache_clear()
    tensors = draw(torch.bfloat16)
    rows = whole_rows(2, 40, torch.device("cpu"))
    output = sdpa.attend_varlen(*tensors, rows, window=7)
    sdpa.load_varlen.cache_clear()
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
    found = sdpa.supports(torch.device(device), capability, dtype, head_dim)
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
