"""The KL of next-token distributions against dense float64, its gradients and its memory."""

import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longred.objectives.logits import HeadInputs, logit_distill_loss

VOCABULARY = 29


def dense_loss(
    student: HeadInputs, teacher: HeadInputs, temperature: float, cap: float | None
) -> Tensor:
    """Compute the loss token by token and word by word, in float64."""
    losses = []
    for row in range(len(student.hidden_BTD)):
        for place in range(student.hidden_BTD.shape[1]):
            probabilities = []
            for hidden, weight in (teacher, student):
                logits = torch.stack([word @ hidden[row, place] for word in weight])
                if cap is not None:
                    logits = cap * torch.tanh(logits / cap)
                powers = torch.exp(logits / temperature)
                probabilities.append(powers / powers.sum())
            p, q = probabilities
            losses.append(sum(p[v] * torch.log(p[v] / q[v]) for v in range(VOCABULARY)))
    return temperature**2 * torch.stack(losses).mean()


def case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states and output embeddings of student and teacher, of different sizes."""
    torch.manual_seed(0)
    return (
        torch.randn(2, 9, 8, dtype=dtype),
        torch.randn(VOCABULARY, 8, dtype=dtype),
        torch.randn(2, 9, 6, dtype=dtype),
        torch.randn(VOCABULARY, 6, dtype=dtype),
    )


@pytest.mark.parametrize("chunk_tokens", [1, 7, 1000])
@pytest.mark.parametrize("temperature", [1.0, 2.5, 0.5])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_loss_and_gradients_equal_the_dense_reference(
    chunk_tokens: int, temperature: float, cap: float | None
) -> None:
    hidden, weight, *teacher = case()
    pairs = []
    for is_dense in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        sides = HeadInputs(h, w), HeadInputs(*teacher)
        if is_dense:
            loss = dense_loss(*sides, temperature, cap)
        else:
            settings = {"temperature": temperature, "logit_softcap": cap}
            loss = logit_distill_loss(*sides, **settings, chunk_tokens=chunk_tokens)
        (loss * 0.37).backward()
        pairs.append((loss.detach(), h.grad, w.grad))
    for got, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_gradient_passes_gradcheck() -> None:
    hidden, weight, teacher_hidden, teacher_weight = case()
    teacher = HeadInputs(teacher_hidden[:1, :4], teacher_weight)
    settings = {"temperature": 1.7, "logit_softcap": 2.0, "chunk_tokens": 2}
    assert torch.autograd.gradcheck(
        lambda h, w: logit_distill_loss(HeadInputs(h, w), teacher, **settings),
        (hidden[:1, :4].requires_grad_(), weight.requires_grad_()),
    )


def test_gradients_reach_only_what_needs_them() -> None:
    hidden, weight, teacher_hidden, teacher_weight = case()
    h = hidden.clone().requires_grad_()
    others = [teacher_hidden.requires_grad_(), teacher_weight.requires_grad_()]
    logit_distill_loss(HeadInputs(h, weight), HeadInputs(*others)).backward()
    assert h.grad is not None
    assert all(tensor.grad is None for tensor in (weight, *others))
    w = weight.clone().requires_grad_()
    logit_distill_loss(HeadInputs(hidden, w), HeadInputs(*others)).backward()
    assert w.grad is not None
    assert not logit_distill_loss(HeadInputs(hidden, weight), HeadInputs(*others)).requires_grad


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equal_models_have_no_loss_and_no_gradient(enabled: bool, temperature: float) -> None:
    hidden, weight, *_ = case(torch.float32)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    # A teacher's head is stored in the type to which autocast rounds the student's.
    head = weight.bfloat16() if enabled else weight
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        loss = logit_distill_loss(
            HeadInputs(h, w), HeadInputs(hidden, head), temperature=temperature, chunk_tokens=5
        )
    loss.backward()
    assert loss.item() == 0.0
    assert not h.grad.any()
    assert not w.grad.any()


def test_a_small_kl_keeps_its_digits_in_float32() -> None:
    """Summed as it is written, the KL of nearly equal models would be rounding noise.

    The errors of one draw may cancel, so those of 16 draws are compared.
    """
    squared = torch.zeros(2, dtype=torch.float64)
    for seed in range(16):
        torch.manual_seed(seed)
        hidden, weight = torch.randn(4, 50, 16), 3 * torch.randn(2000, 16)
        teacher = hidden + 1e-4 * torch.randn(4, 50, 16)
        found = logit_distill_loss(HeadInputs(hidden, weight), HeadInputs(teacher, weight))
        log_q, log_p = ((x.double() @ weight.double().T).log_softmax(-1) for x in (hidden, teacher))
        exact = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        log_q, log_p = ((x @ weight.T).log_softmax(-1) for x in (hidden, teacher))
        plain = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        assert 0 < exact < 1e-6
        squared += ((torch.stack([found, plain]).double() - exact) / exact) ** 2
    ours, naive = (squared / 16).sqrt().tolist()
    assert ours < 0.01
    assert naive > 2 * ours


def test_bf16_autocast_stays_near_fp32() -> None:
    hidden, weight, *teacher = case(torch.float32)
    results = []
    for enabled in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = logit_distill_loss(HeadInputs(h, w), HeadInputs(*teacher), chunk_tokens=4)
        loss.backward()
        assert loss.dtype == h.grad.dtype == w.grad.dtype == torch.float32
        results.append((loss.detach(), h.grad, w.grad))
    for exact, rough in zip(*results, strict=True):
        assert ((rough - exact).norm() / exact.norm()).item() < 0.01


class _Alive(TorchDispatchMode):
    """Follows the largest tensor, and the number of chunks' logits that exist at once."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.largest, self.most = size, 0, 0
        self._alive: dict[int, object] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if not isinstance(item, Tensor):
                continue
            self.largest = max(self.largest, item.numel())
            storage = item.untyped_storage()
            key = storage.data_ptr()
            if storage.nbytes() >= self.size and key not in self._alive:
                self._alive[key] = weakref.ref(storage, lambda _, key=key: self._alive.pop(key))
                self.most = max(self.most, len(self._alive))
        return result


def test_three_chunks_of_logits_exist_at_most() -> None:
    hidden, teacher = torch.randn(2, 100, 4).requires_grad_(), torch.randn(2, 100, 4)
    weight, head = torch.randn(500, 4).requires_grad_(), torch.randn(500, 4)
    with _Alive(10 * 500 * 4) as seen:
        loss = logit_distill_loss(
            HeadInputs(hidden, weight), HeadInputs(teacher, head), chunk_tokens=10
        )
        loss.backward()
    assert seen.largest == 10 * 500
    assert seen.most == 3
