"""Output and gradients of every backend against the dense formula in float64.

The FlashAttention packages need a GPU. Their arguments are checked without one, by stand-in
functions that have the same signatures and compute what the packages document.
"""

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from longred.attention import backends, flash, sdpa
from longred.attention.backends import BACKENDS, Needs, choose_backend
from longred.attention.documents import find_documents
from longred.attention.sdpa import Rules, attend_exactly
from longred.errors import ConfigError, PreflightError

RULES = {
    "causal": Rules(),
    "scale": Rules(scale=0.7),
    "window": Rules(window=7),
    "softcap": Rules(softcap=1.5),
    "softcap-window": Rules(softcap=1.5, window=7, scale=0.7),
}


def dense(query: Tensor, key: Tensor, value: Tensor, rules: Rules, ids: Tensor | None) -> Tensor:
    """Compute the formula with a dense mask, in float64; return [B, T, H, d]."""
    query, key, value = query.double(), key.double(), value.double()
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scale = query.shape[-1] ** -0.5 if rules.scale is None else rules.scale
    logits = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale
    if rules.softcap is not None:
        logits = rules.softcap * torch.tanh(logits / rules.softcap)
    past = key.shape[2] - query.shape[2]
    behind = (torch.arange(query.shape[2])[:, None] + past) - torch.arange(key.shape[2])[None]
    seen = (behind >= 0) & (behind < (rules.window or key.shape[2]))
    seen = seen[None, None].to(query.device)
    if ids is not None:
        seen = seen & (ids[:, None, :, None] == ids[:, None, None, :])
    probs = logits.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("bhqk,bhkd->bqhd", probs, value)


def draw(dtype: torch.dtype, device: str = "cpu", length: int = 40) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, 4, length, 16), (2, 2, length, 16), (2, 2, length, 16)]
    return [(3 * torch.randn(shape, device=device)).to(dtype).requires_grad_() for shape in shapes]


def packed(length: int = 40) -> Tensor:
    ids = torch.zeros(2, length, dtype=torch.long)
    ids[0, 5:] = 1
    ids[0, 30:] = 2
    return ids


def check(
    backend: str, tensors: list[Tensor], rules: Rules, ids: Tensor | None, tol: float
) -> None:
    documents = None if ids is None else find_documents(ids)
    got = BACKENDS[backend].attend(*tensors, rules._replace(documents=documents))
    exact = [x.detach().double().requires_grad_() for x in tensors]
    expected = dense(*exact, rules, ids)
    assert got.dtype == tensors[2].dtype
    weight = torch.randn_like(expected)
    got_grads = torch.autograd.grad((got.double() * weight).sum(), tensors)
    grads = torch.autograd.grad((expected * weight).sum(), exact)
    for ours, theirs in zip((got, *got_grads), (expected, *grads), strict=True):
        assert ((ours.double() - theirs).norm() / theirs.norm()).item() < tol


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("ids", [None, packed()], ids=["whole", "documents"])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("block", [2**24, 2 * 4 * 40 * 3])
def test_sdpa(
    rules: Rules,
    ids: Tensor | None,
    dtype: torch.dtype,
    tol: float,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With the small block the exact path runs several blocks and recomputes them in backward.
    monkeypatch.setattr(sdpa, "BLOCK_LOGITS", block)
    check("sdpa", draw(dtype), rules, ids, tol)


def test_exact_path_is_exact_without_a_cap_too() -> None:
    tensors = draw(torch.float64)
    tensors[0] = tensors[0][:, :, -9:]
    expected = dense(*tensors, Rules(window=12), None)
    got = attend_exactly(*tensors, Rules(window=12)).transpose(1, 2)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("rules", [Rules(), Rules(scale=0.7)])
@pytest.mark.parametrize("num_queries", [1, 2, 9, 39])
def test_cached_and_new_keys_are_attended_in_parts(
    dtype: torch.dtype, tol: float, rules: Rules, num_queries: int
) -> None:
    query, key, value = (x.detach() for x in draw(dtype))
    query = query[:, :, -num_queries:]
    if num_queries > 1:
        assert sdpa._takes_parts(query, key, value, rules)
    got = BACKENDS["sdpa"].attend(query, key, value, rules)
    assert got.dtype == dtype
    wanted = dense(query, key, value, rules, None)
    torch.testing.assert_close(got.double(), wanted, atol=tol, rtol=tol)


def test_with_gradients_new_keys_are_not_attended_in_parts() -> None:
    query, key, value = draw(torch.float64)
    query = query[:, :, -9:]
    got = BACKENDS["sdpa"].attend(query, key, value, Rules())
    wanted = dense(query, key, value, Rules(), None)
    weight = torch.randn_like(wanted)
    grads = [torch.autograd.grad((x * weight).sum(), (key, value)) for x in (got, wanted)]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_exact_path_computes_in_fp32_under_autocast() -> None:
    tensors = draw(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = BACKENDS["sdpa"].attend(*tensors, Rules(softcap=1.5))
    torch.testing.assert_close(
        got.double(), dense(*tensors, Rules(softcap=1.5), None), atol=1e-5, rtol=1e-5
    )


# --- Arguments of the FlashAttention packages ---------------------------------------------------

COMMON = "softmax_scale causal window_size softcap deterministic"
SIGNATURES = {
    "flash_attention_2": (
        "flash_attn",
        f"dropout_p alibi_slopes return_attn_probs {COMMON}",
        "block_table",
        (-1, -1),
    ),
    "flash_attention_3": (
        "flash_attn_interface",
        f"qv q_descale k_descale v_descale attention_chunk num_splits pack_gqa sm_margin "
        f"return_attn_probs {COMMON}",
        "seqused_q seqused_k",
        (-1, -1),
    ),
    "flash_attention_4": (
        "flash_attn.cute",
        f"qv gather_kv_indices learnable_sink num_splits pack_gqa score_mod mask_mod return_lse "
        f"{COMMON}",
        "min_seqlen_k seqused_q seqused_k page_table",
        (None, None),
    ),
}
"""Module, options of both functions, more options of the varlen one, and the default window."""


def as_documented(q: Tensor, k: Tensor, v: Tensor, default: tuple[Any, Any], **o: Any) -> Tensor:
    """A query sees window_size[0] keys before itself; `causal` hides later keys."""
    assert o["causal"] is True
    left, right = o.get("window_size", default)
    assert right in (-1, None, 0)
    window = None if left in (-1, None) else left + 1
    rules = Rules(o.get("softmax_scale"), 0.0, window, o.get("softcap", 0.0) or None)
    return dense(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), rules, None).to(q.dtype)


def stand_in(name: str) -> types.ModuleType:
    """A module with the two functions of a package; they refuse options the package lacks."""
    module_name, options, of_varlen, default = SIGNATURES[name]

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Any:
        assert given.keys() <= set(options.split())
        output = as_documented(q, k, v, default, **given)
        return (output, None) if name == "flash_attention_4" else output

    def flash_attn_varlen_func(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Any:
        ends = given.pop("cu_seqlens_q")
        assert given.pop("cu_seqlens_k") is ends
        assert ends.dtype == torch.int32
        lengths = torch.diff(ends).tolist()
        assert given.pop("max_seqlen_q") == given.pop("max_seqlen_k") == max(lengths)
        assert given.keys() <= {*options.split(), *of_varlen.split()}
        parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        rows = [as_documented(*(x[None] for x in part), default, **given)[0] for part in parts]
        return (torch.cat(rows), None) if name == "flash_attention_4" else torch.cat(rows)

    module = types.ModuleType(module_name)
    module.__dict__.update(
        flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func
    )
    return module


@pytest.fixture
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = request.param
    module = stand_in(name)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    if "." in module.__name__:
        monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    flash.load.cache_clear()
    yield name
    flash.load.cache_clear()


@pytest.mark.parametrize("installed", SIGNATURES, indirect=True)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("ids", [None, packed()], ids=["whole", "documents"])
def test_flash_packages_are_called_right(installed: str, rules: Rules, ids: Tensor | None) -> None:
    check(installed, draw(torch.bfloat16), rules, ids, 2e-2)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("installed", SIGNATURES, indirect=True)
@pytest.mark.parametrize("ids", [None, packed()], ids=["whole", "documents"])
def test_torchs_switch_for_deterministic_algorithms_reaches_the_flash_packages(
    installed: str, ids: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def spy(*args: Any, **options: Any) -> Any:
        given.append(options.get("deterministic", False))
        return (original.rows if ids is None else original.varlen)(*args, **options)

    original = flash.load(installed)
    documents = None if ids is None else find_documents(ids)
    with monkeypatch.context() as patch:
        patch.setattr(flash, "load", lambda name: flash.Kernels(spy, spy))
        for switch in (False, True, False):
            torch.use_deterministic_algorithms(switch)
            BACKENDS[installed].attend(*draw(torch.bfloat16), Rules(documents=documents))
    assert given == [False, True, False]


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", ["flash_attention_3", "flash_attention_4"])
def test_a_backend_without_a_deterministic_backward_pass_is_refused(name: str) -> None:
    with pytest.raises(PreflightError, match="no deterministic backward pass for head dimension"):
        choose_backend(name, HOPPER._replace(head_dim=256))
    assert "deterministic" not in (BACKENDS[name].problem(HOPPER) or "")


@pytest.mark.parametrize("installed", ["flash_attention_2"], indirect=True)
def test_flash_under_autocast_takes_the_type_of_the_values(installed: str) -> None:
    query, key, value = draw(torch.float32)
    output = BACKENDS[installed].attend(query, key, value.bfloat16(), Rules())
    assert output.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="computes in bf16 or fp16"):
        BACKENDS[installed].attend(query, key, value, Rules())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("ids", [None, packed(384)], ids=["whole", "documents"])
def test_flash_packages_on_a_gpu(name: str, rules: Rules, ids: Tensor | None) -> None:
    capability = torch.cuda.get_device_capability()
    needs = Needs("cuda", capability, torch.bfloat16, 64, rules.softcap is not None, False)
    problem = BACKENDS[name].problem(needs)
    if problem is not None:
        pytest.skip(f"{name} {problem}")
    torch.manual_seed(0)
    shapes = [(2, heads, 384, 64) for heads in (4, 2, 2)]
    tensors = [torch.randn(s, device="cuda", dtype=torch.bfloat16).requires_grad_() for s in shapes]
    check(name, tensors, rules, None if ids is None else ids.cuda(), 2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sdpa_on_a_gpu(rules: Rules, dtype: torch.dtype) -> None:
    for ids in (None, packed().cuda()):
        check("sdpa", draw(dtype, "cuda"), rules, ids, 2e-2)


# --- Which backend serves a model ---------------------------------------------------------------

HOPPER = Needs("cuda", (9, 0), torch.bfloat16, 128, softcap=False, dropout=False)


def test_auto_is_sdpa_where_nothing_else_can(caplog: pytest.LogCaptureFixture) -> None:
    cpu = HOPPER._replace(device="cpu", capability=(0, 0))
    assert choose_backend("auto", cpu).name == "sdpa"
    assert choose_backend("auto", HOPPER._replace(dtype=torch.float32)).name == "sdpa"


@pytest.mark.parametrize("installed", ["flash_attention_2", "flash_attention_3"], indirect=True)
@pytest.mark.parametrize(
    ("capability", "softcap", "takes"),
    [
        ((8, 0), False, {"flash_attention_2"}),
        ((8, 9), False, {"flash_attention_2"}),
        ((9, 0), False, {"flash_attention_3"}),
        ((10, 0), False, set()),
        ((12, 0), False, {"flash_attention_2"}),
        ((7, 5), False, set()),
        ((9, 0), True, {"flash_attention_2", "flash_attention_3"}),
        ((10, 0), True, {"flash_attention_2"}),
    ],
)
def test_auto_takes_the_fastest_of_the_architecture(
    installed: str, capability: tuple[int, int], softcap: bool, takes: set[str]
) -> None:
    needs = HOPPER._replace(capability=capability, softcap=softcap)
    assert choose_backend("auto", needs).name == (installed if installed in takes else "sdpa")
    assert choose_backend("sdpa", needs).name == "sdpa"


def test_the_log_names_the_backend_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends._log_once.cache_clear()
    monkeypatch.setattr(backends, "loaded_cudnn", dict)
    caplog.set_level("INFO", logger="longred.attention")
    for softcap in (True, True, False):
        choose_backend("sdpa", HOPPER._replace(softcap=softcap))
    exact, plain = caplog.messages
    assert exact == "attention: sdpa; logits are soft-capped, so by the exact path"
    assert plain == "attention: sdpa"
    choose_backend("flash_attention_2", HOPPER._replace(dtype=torch.float32))
    assert caplog.messages[-1] == ("attention: sdpa; flash_attention_2 computes in bf16 or fp16")


@pytest.mark.parametrize(
    ("origin", "end"), [("torch", ")"), ("system", ", not the one that came with torch)")]
)
def test_on_a_gpu_the_log_names_the_loaded_cudnn(
    origin: str, end: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"cudnn_version": "9.19.0", "cudnn_path": "/usr/lib", "cudnn_origin": origin}
    backends._log_once.cache_clear()
    monkeypatch.setattr(backends, "loaded_cudnn", lambda: found)
    caplog.set_level("INFO", logger="longred.attention")
    choose_backend("sdpa", HOPPER._replace(device="cpu", capability=(0, 0)))
    choose_backend("auto", HOPPER._replace(capability=(10, 0)))
    choose_backend("auto", HOPPER._replace(capability=(10, 0)))
    assert caplog.messages == ["attention: sdpa", f"attention: sdpa (cuDNN 9.19.0, /usr/lib{end}"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("flash_attention_2", {}, "is not installed"),
        ("flash_attention_3", {}, "is not installed"),
        ("flash_attention_4", {}, "is not installed"),
        ("flash_attention_2", {"device": "cpu"}, "needs a CUDA GPU, and the model is on cpu"),
        ("flash_attention_3", {"capability": (8, 0)}, r"9\.x, and this GPU has 8\.0"),
        ("flash_attention_2", {"head_dim": 320}, "up to 256"),
        ("flash_attention_3", {"dropout": True}, "has no dropout"),
        (
            "flash_attention_4",
            {"capability": (10, 0), "head_dim": 256, "softcap": True},
            "soft-capped logits at head dimension 256",
        ),
    ],
)
def test_a_backend_that_cannot_is_one_clear_error(
    name: str, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("flash_attn", "flash_attn_interface", "flash_attn_3"):
        monkeypatch.setitem(sys.modules, module, None)
    flash.load.cache_clear()
    with pytest.raises(PreflightError, match=message) as caught:
        choose_backend(name, HOPPER._replace(**changes))
    assert str(caught.value).startswith(f"attention.backend: {name} ")


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ConfigError, match=r"attention\.backend: 'flesh' is not one of auto, sdpa"):
        choose_backend("flesh", HOPPER)
