"""Attention of one new token per row to a cache, against the formula for each row alone."""

import pytest
import torch
from test_kernels import dense
from test_varlen import flash_on_cpu, marked  # noqa: F401
from torch import Tensor

from longred.attention import cached as module
from longred.attention import sdpa
from longred.attention.cached import Cached, attend_cached
from longred.attention.sdpa import Rules
from tests.operator_counts import LiveBytes

USED = [1, 5, 12, 20]
RULES = {
    "all": Rules(),
    "scale": Rules(scale=0.7),
    "window": Rules(window=7),
    "softcap": Rules(softcap=1.5),
    "softcap-window": Rules(softcap=1.5, window=7, scale=0.7),
}


def draw(dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Queries [B, 6, 1, 16], and the keys and values of two heads in 24 slots."""
    torch.manual_seed(0)
    shapes = [(len(USED), 6, 1, 16), (len(USED), 24, 2, 16), (len(USED), 24, 2, 16)]
    query, *slots = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
    return [query, *(x.transpose(1, 2) for x in slots)]


def expected(tensors: list[Tensor], rules: Rules) -> Tensor:
    query, key, value = (x.double() for x in tensors)
    rows = [
        dense(query[n : n + 1], key[n : n + 1, :, :used], value[n : n + 1, :, :used], rules, None)
        for n, used in enumerate(USED)
    ]
    return torch.cat(rows)


def used_on(device: str) -> Cached:
    return Cached(torch.tensor(USED, dtype=torch.int32, device=device), max(USED))


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_rows_see_their_own_slots(rules: Rules, dtype: torch.dtype, tol: float) -> None:
    tensors = draw(dtype)
    got = attend_cached(*tensors, used_on("cpu"), rules)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected(tensors, rules), atol=tol, rtol=tol)


def test_what_unused_slots_hold_does_not_matter() -> None:
    tensors = draw(torch.float32)
    before = attend_cached(*tensors, used_on("cpu"), Rules())
    for x in tensors[1:]:
        for row, used in enumerate(USED):
            x[row, :, used:] = 1e30
    assert torch.equal(attend_cached(*tensors, used_on("cpu"), Rules()), before)


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("window", [None, 7])
def test_the_varlen_kernel_reads_the_used_slots(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "supports", lambda *_: True)
    monkeypatch.setattr(module, "_grouped", None)
    monkeypatch.setattr(module, "_varlen_is_right", lambda *_, **__: True)
    tensors, rules = draw(torch.bfloat16), Rules(window=window)
    got = attend_cached(*tensors, used_on("cpu"), rules)
    torch.testing.assert_close(got.double(), expected(tensors, rules), atol=2e-2, rtol=2e-2)


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("is_right", [True, False])
def test_the_varlen_kernel_is_compared_before_its_first_use(
    is_right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "supports", lambda *_: True)
    real = sdpa.load_varlen()

    def ignores_what_is_used(*args: object, seqused_k: Tensor, **settings: object) -> object:
        return real(*args, **settings)

    if not is_right:
        monkeypatch.setattr(module, "load_varlen", lambda: ignores_what_is_used)
    module._varlen_is_right.cache_clear()
    assert module._takes_varlen(*draw(torch.bfloat16), False) == is_right
    module._varlen_is_right.cache_clear()


@pytest.mark.usefixtures("flash_on_cpu")
def test_full_attention_is_asked_for_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mask, the kernel neither divides long rows nor shares keys between heads.

    Nor does a call read the function's signature again, which takes longer than the kernel.
    """
    monkeypatch.setattr(module, "supports", lambda *_: True)
    module._varlen_is_right.cache_clear()
    tensors = draw(torch.bfloat16)
    attend_cached(*tensors, used_on("cpu"), Rules())
    asked: list[object] = []
    real = sdpa.load_varlen()

    def recorded(*args: object, **settings: object) -> object:
        asked.append(settings["window_size"])
        return real(*args, **settings)

    monkeypatch.setattr(module, "load_varlen", lambda: recorded)
    monkeypatch.setattr(module.inspect, "signature", None)
    attend_cached(*tensors, used_on("cpu"), Rules())
    module._varlen_is_right.cache_clear()
    assert asked == [(-1, -1)]


def test_keys_are_not_repeated() -> None:
    """A step needs memory for a mask and its output, but no copy of the keys."""
    tensors = draw(torch.float32)
    with LiveBytes() as live:
        attend_cached(*tensors, used_on("cpu"), Rules())
    assert live.peak < tensors[1].nbytes


@marked
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_rows_see_their_own_slots_on_a_gpu(rules: Rules) -> None:
    tensors = draw(torch.bfloat16, "cuda")
    got = attend_cached(*tensors, used_on("cuda"), rules)
    wanted = expected(tensors, rules)
    torch.testing.assert_close(got.double(), wanted, atol=2e-2, rtol=2e-2)


@marked
@pytest.mark.parametrize("has_window", [False, True])
@pytest.mark.parametrize("heads", [(32, 8, 128), (16, 16, 64), (8, 4, 256)])
def test_the_varlen_kernel_is_used_on_a_gpu(heads: tuple[int, int, int], has_window: bool) -> None:
    device = torch.device("cuda")
    assert module._varlen_is_right(device, torch.bfloat16, *heads, has_window=has_window)
