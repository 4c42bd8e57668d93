import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longred.objectives.cross_entropy import long_loss


def dense_loss(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    documents: Tensor | None,
    cap: float | None = None,
) -> Tensor:
    """Compute the mean loss token by token, in float64."""
    losses = []
    for row in range(tokens.shape[0]):
        for place in range(tokens.shape[1] - 1):
            if documents is not None and documents[row, place] != documents[row, place + 1]:
                continue
            logits = weight @ hidden[row, place]
            if cap is not None:
                logits = cap * torch.tanh(logits / cap)
            losses.append(logits.logsumexp(0) - logits[tokens[row, place + 1]])
    return torch.stack(losses).mean()


def case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(3, 17, 8, dtype=dtype)
    weight = torch.randn(29, 8, dtype=dtype)
    tokens = torch.randint(0, 29, (3, 17))
    documents = torch.zeros(3, 17, dtype=torch.int32)
    documents[0, 5:] = 1
    documents[0, 16:] = 2
    documents[1, 1:] = 7
    return hidden, weight, tokens, documents


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 1000])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_long_loss_and_gradients_equal_the_dense_reference(
    masked: bool, chunk_tokens: int, cap: float | None
) -> None:
    hidden, weight, tokens, documents = case()
    mask = documents if masked else None
    pairs = []
    for function in (long_loss, dense_loss):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if function is long_loss:
            options = {"document_ids_BT": mask, "logit_softcap": cap, "chunk_tokens": chunk_tokens}
            loss = long_loss(h, w, tokens, **options)
        else:
            loss = dense_loss(h, w, tokens, mask, cap)
        (loss * 0.37).backward()
        pairs.append((loss.detach(), h.grad, w.grad))
    for got, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_gradients_of_one_side_and_of_shared_weights() -> None:
    hidden, weight, tokens, _ = case()
    frozen = weight.clone()
    h = hidden.clone().requires_grad_()
    long_loss(h, frozen, tokens).backward()
    assert frozen.grad is None
    embedding = weight.clone().requires_grad_()
    tied = long_loss(F.embedding(tokens, embedding), embedding, tokens, chunk_tokens=5)
    (got,) = torch.autograd.grad(tied, embedding)
    (expected,) = torch.autograd.grad(
        dense_loss(F.embedding(tokens, embedding), embedding, tokens, None), embedding
    )
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    assert not long_loss(hidden, weight, tokens).requires_grad


def test_gradient_passes_gradcheck() -> None:
    hidden, weight, tokens, documents = case()
    h, w = hidden[:1, :5].requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: long_loss(
            a, b, tokens[:1, :5], document_ids_BT=documents[:1, :5], chunk_tokens=2
        ),
        (h, w),
    )


def test_no_target_at_all_gives_zero() -> None:
    hidden, weight, tokens, _ = case()
    h = hidden.requires_grad_()
    loss = long_loss(h, weight, tokens, document_ids_BT=torch.arange(17).expand(3, -1))
    loss.backward()
    assert loss.item() == 0.0
    assert h.grad is not None
    assert not h.grad.any()


class _Waits(TorchDispatchMode):
    """Records operators that synchronise host and device."""

    NAMES = frozenset({"aten::nonzero", "aten::_local_scalar_dense", "aten::masked_select"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        is_choice = func._schema.name == "aten::index" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func._schema.name in self.NAMES or is_choice:
            self.found.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_the_host_never_waits_for_the_device() -> None:
    hidden, weight, tokens, documents = case()
    with _Waits() as waits:
        hidden[documents == 0]
        assert waits.found == ["aten::index"]
        waits.found.clear()
        loss = long_loss(
            hidden.requires_grad_(), weight.requires_grad_(), tokens, document_ids_BT=documents
        )
        loss.backward()
    assert not waits.found


class _LargestTensor(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, Tensor):
                self.largest = max(self.largest, item.numel())
        return result


def test_logits_never_exist_for_all_tokens() -> None:
    hidden, weight = torch.randn(2, 100, 4).requires_grad_(), torch.randn(500, 4).requires_grad_()
    tokens = torch.randint(0, 500, (2, 100))
    with _LargestTensor() as seen:
        long_loss(hidden, weight, tokens, chunk_tokens=10).backward()
    assert seen.largest <= 10 * 500


def test_bf16_autocast_stays_near_fp32() -> None:
    hidden, weight, tokens, _ = case(torch.float32)
    results = []
    for enabled in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = long_loss(h, w, tokens, chunk_tokens=10)
        loss.backward()
        assert loss.dtype == h.grad.dtype == w.grad.dtype == torch.float32
        results.append((loss.detach(), h.grad, w.grad))
    for exact, rough in zip(*results, strict=True):
        assert ((rough - exact).norm() / exact.norm()).item() < 0.01


def test_the_embedding_gradient_is_summed_in_fp32() -> None:
    """bf16 weights: a bf16 sum over many chunks would lose the later ones."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(1, 1025, 8).bfloat16(), torch.randn(16, 8).bfloat16()
    tokens = torch.randint(0, 16, (1, 1025))
    exact = weight.double().requires_grad_()
    long_loss(hidden.double(), exact, tokens).backward()
    errors = []
    for chunk_tokens in (1024, 4):
        w = weight.clone().requires_grad_()
        long_loss(hidden, w, tokens, chunk_tokens=chunk_tokens).backward()
        assert w.grad is not None
        assert w.grad.dtype == torch.bfloat16
        errors.append(((w.grad.double() - exact.grad).norm() / exact.grad.norm()).item())
    assert max(errors) < 0.005


def test_a_tied_head_gets_both_gradients_under_autocast() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 40, (2, 30))
    first, second = torch.randn(40, 16), torch.randn(16, 16) / 4
    grads = []
    for dtype, enabled in ((torch.float64, False), (torch.float32, True)):
        embedding = first.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            hidden = F.embedding(tokens, embedding) @ second.to(dtype)
            loss = long_loss(hidden, embedding, tokens, chunk_tokens=7)
        loss.backward()
        assert embedding.grad is not None
        grads.append(embedding.grad.double())
    assert ((grads[1] - grads[0]).norm() / grads[0].norm()).item() < 0.01
