from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from longred.profiling import attention_kl as module
from longred.profiling.attention_kl import attention_kl


def dense_kl(
    teacher: tuple[Tensor, Tensor],
    student: tuple[Tensor, Tensor],
    scale: float,
    documents: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """Compute the KL in float64, in loops over queries and keys."""
    rows, heads, length, _ = teacher[0].shape
    repeats = heads // teacher[1].shape[1]
    result = torch.zeros(rows, heads, length, dtype=torch.float64)
    for row in range(rows):
        for head in range(heads):
            for i in range(length):
                seen = [
                    j
                    for j in range(i + 1)
                    if (window is None or i - j < window)
                    and (
                        documents is None or bool((documents[row, j:i] == documents[row, i]).all())
                    )
                ]
                laws = []
                for query, key in (teacher, student):
                    keys = key[row, head // repeats, seen].double()
                    laws.append((keys @ query[row, head, i].double() * scale).softmax(0))
                result[row, head, i] = (laws[0] * (laws[0].log() - laws[1].log())).sum()
    return result


def case(dtype: torch.dtype = torch.float64, length: int = 23) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    query, key = torch.randn(2, 6, length, 8), torch.randn(2, 2, length, 8)
    return tuple(
        (x + noise * torch.randn_like(x)).to(dtype)
        for noise in (0.0, 0.5)
        for x in (2 * query, key)
    )


DOCUMENTS = torch.zeros(2, 23, dtype=torch.int32)
DOCUMENTS[0, 4:] = 1
DOCUMENTS[0, 9:] = 0
DOCUMENTS[1, 22:] = 3


@pytest.mark.parametrize("documents", [None, DOCUMENTS])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("block", [(1, 1), (7, 3), (4, 9), (128, 256)])
def test_equals_the_dense_float64_reference(
    documents: Tensor | None,
    window: int | None,
    block: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BLOCK_QUERIES", block[0])
    monkeypatch.setattr(module, "BLOCK_KEYS", block[1])
    tq, tk, sq, sk = case()
    got = attention_kl(tq, tk, sq, sk, scale=0.7, document_ids_BT=documents, sliding_window=window)
    expected = dense_kl((tq, tk), (sq, sk), 0.7, documents, window)
    assert got.shape == (2, 6, 23)
    torch.testing.assert_close(got, expected, atol=1e-13, rtol=1e-12)
    assert not got[:, :, 0].any()


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize("size", [0.5, 8.0, 60.0])
def test_long_rows_and_strong_logits_are_exact_in_float64(
    documents: bool, window: int | None, size: float
) -> None:
    torch.manual_seed(1)
    length, place = 389, torch.arange(389)
    tq, tk = size * torch.randn(2, 4, length, 16).double(), torch.randn(2, 2, length, 16).double()
    sq, sk = tq + 0.2 * torch.randn_like(tq), tk + 0.2 * torch.randn_like(tk)
    ids = torch.stack([place // 140, place // 300]) if documents else torch.zeros(2, length)
    seen = (place[:, None] >= place) & (place[:, None] - place < (window or length))
    seen = (seen & (ids[:, :, None] == ids[:, None]))[:, None]
    logs = []
    for query, key in ((tq, tk), (sq, sk)):
        logits = query @ key.repeat_interleave(2, 1).mT / 4
        logs.append(logits.masked_fill(~seen, float("-inf")).log_softmax(-1))
    expected = (logs[0].exp() * (logs[0] - logs[1]).masked_fill(~seen, 0.0)).sum(-1)
    got = attention_kl(
        tq, tk, sq, sk, document_ids_BT=ids if documents else None, sliding_window=window
    )
    assert ((got - expected).abs() <= 1e-12 + 1e-10 * expected).all()


def test_blocks_that_no_query_sees_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_QUERIES", 4)
    monkeypatch.setattr(module, "BLOCK_KEYS", 4)
    seen: list[tuple[int, int, int]] = []
    original = module._Blocks.of_keys

    def watched(self: module._Blocks, start: int, end: int) -> Iterator[tuple[int, int]]:
        for low, high in original(self, start, end):
            seen.append((start, low, high))
            yield low, high

    monkeypatch.setattr(module._Blocks, "of_keys", watched)
    tq, tk, sq, sk = case()
    attention_kl(tq, tk, sq, sk, sliding_window=3)
    assert [(low, high) for start, low, high in seen if start == 20] == [(20, 23), (18, 20)]
    seen.clear()
    attention_kl(tq, tk, sq, sk, document_ids_BT=torch.arange(23).expand(2, -1) // 8)
    assert [(low, high) for start, low, high in seen if start == 16] == [(16, 20)]
    assert [(low, high) for start, low, high in seen if start == 20] == [(20, 23), (16, 20)]


def test_default_scale_and_equal_heads() -> None:
    tq, tk, sq, sk = case()
    tk6, sk6 = tk.repeat_interleave(3, 1), sk.repeat_interleave(3, 1)
    expected = dense_kl((tq, tk6), (sq, sk6), 8**-0.5)
    torch.testing.assert_close(attention_kl(tq, tk6, sq, sk6), expected, atol=1e-13, rtol=1e-12)


def test_same_attention_has_no_distance_and_others_a_positive_one() -> None:
    tq, tk, sq, sk = case()
    assert attention_kl(tq, tk, tq, tk).abs().max() == 0
    assert (attention_kl(tq, tk, sq, sk)[:, :, 1:] > 0).all()


def test_fp32_and_bf16_inputs_are_computed_in_fp32() -> None:
    exact = attention_kl(*case())
    fp32 = attention_kl(*case(torch.float32))
    assert fp32.dtype == torch.float32
    assert (fp32.double() - exact).abs().max() < 1e-5
    rounded = case(torch.bfloat16)
    bf16 = attention_kl(*rounded)
    assert bf16.dtype == torch.float32
    assert (bf16.double() - attention_kl(*(x.double() for x in rounded))).abs().max() < 1e-5


def test_extreme_logits_stay_finite() -> None:
    tq, tk, sq, sk = case(torch.float32)
    got = attention_kl(100 * tq, tk, 100 * sq, sk)
    assert got.isfinite().all()


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 3])
def test_gradients_equal_the_dense_reference(window: int | None, softcap: float | None) -> None:
    gradients = []
    for dense in (False, True):
        tq, tk, sq, sk = case(length=9)
        sq.requires_grad_()
        sk.requires_grad_()
        if dense:
            weights = _dense_autograd(tq, tk, sq, sk, window, softcap)
        else:
            weights = attention_kl(
                tq, tk, sq, sk, scale=0.3, sliding_window=window, softcap=softcap
            )
        weights.square().sum().backward()
        gradients.append((weights.detach(), sq.grad, sk.grad))
    for got, expected in zip(*gradients, strict=True):
        assert got is not None
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-10)


def _dense_autograd(
    tq: Tensor, tk: Tensor, sq: Tensor, sk: Tensor, window: int | None, softcap: float | None
) -> Tensor:
    place = torch.arange(tq.shape[2])
    behind = place[:, None] - place[None, :]
    seen = (behind >= 0) & (behind < (window or 10**6))
    logs = []
    for query, key in ((tq, tk), (sq, sk)):
        logits = query @ key.repeat_interleave(3, 1).transpose(-1, -2) * 0.3
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logs.append(torch.where(seen, logits, -1e30).log_softmax(-1))
    return torch.where(seen, logs[0].exp() * (logs[0] - logs[1]), 0.0).sum(-1)


def test_shapes_must_fit() -> None:
    tq, tk, sq, sk = case()
    with pytest.raises(ValueError, match="do not fit"):
        attention_kl(tq, tk, sq[:, :3], sk)
    with pytest.raises(ValueError, match="do not fit"):
        attention_kl(tq, tk[:, :, :5], sq, sk[:, :, :5])
    with pytest.raises(ValueError, match="document_ids_BT has shape"):
        attention_kl(tq, tk, sq, sk, document_ids_BT=DOCUMENTS[:, :5])
    with pytest.raises(ValueError, match="sliding_window must be 1 or more"):
        attention_kl(tq, tk, sq, sk, sliding_window=0)
