import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longred.errors import ConfigError
from longred.objectives import (
    cosine_distance,
    long_loss,
    loss_weights,
    short_distill_loss,
    short_to_long_loss,
)


def dense_loss(hidden: Tensor, weight: Tensor, tokens: Tensor, documents: Tensor | None) -> Tensor:
    """Token by token, in float64."""
    losses = []
    for row in range(tokens.shape[0]):
        for place in range(tokens.shape[1] - 1):
            if documents is not None and documents[row, place] != documents[row, place + 1]:
                continue
            logits = weight @ hidden[row, place]
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
def test_long_loss_and_gradients_equal_the_dense_reference(masked: bool, chunk_tokens: int) -> None:
    hidden, weight, tokens, documents = case()
    mask = documents if masked else None
    pairs = []
    for function in (long_loss, dense_loss):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if function is long_loss:
            loss = long_loss(h, w, tokens, document_ids_BT=mask, chunk_tokens=chunk_tokens)
        else:
            loss = dense_loss(h, w, tokens, mask)
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


def dense_cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = student.double(), teacher.double()
    cosine = (student * teacher).sum(-1) / (student.norm(dim=-1) * teacher.norm(dim=-1))
    return 1 - cosine.mean()


def test_cosine_distance_equals_float64() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 9, 32).double(), torch.randn(2, 9, 32).double()
    torch.testing.assert_close(
        cosine_distance(student, teacher),
        dense_cosine_distance(student, teacher),
        atol=1e-12,
        rtol=1e-12,
    )


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.1])
def test_bf16_inputs_are_raised_before_the_cosine(noise: float) -> None:
    torch.manual_seed(0)
    teacher = torch.randn(4, 64, 256).bfloat16()
    student = (teacher.float() * (1 + noise * torch.randn(4, 64, 256))).bfloat16().requires_grad_()
    loss = cosine_distance(student, teacher)
    loss.backward()
    exact_student = student.detach().double().requires_grad_()
    exact = dense_cosine_distance(exact_student, teacher)
    exact.backward()
    assert loss.dtype == torch.float32
    assert abs(loss.item() / exact.item() - 1) < 0.02
    assert student.grad is not None
    error = (student.grad.double() - exact_student.grad).norm() / exact_student.grad.norm()
    assert error.item() < 0.01


def test_bf16_inputs_are_raised_under_autocast_too() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(4, 64, 256)
    student = teacher * (1 + 0.01 * torch.randn(4, 64, 256))
    with torch.autocast("cpu", torch.bfloat16):
        loss = cosine_distance(student, teacher)
    assert abs(loss.item() / dense_cosine_distance(student, teacher).item() - 1) < 0.02


def test_distillation_losses_sum_layers_and_take_the_last() -> None:
    torch.manual_seed(0)
    student = {layer: torch.randn(2, 5, 8).double() for layer in (2, 7, 9)}
    teacher = {layer: torch.randn(2, 5, 8).double() for layer in (9, 2, 7)}
    expected = sum(dense_cosine_distance(student[i], teacher[i]) for i in (2, 7, 9))
    torch.testing.assert_close(short_distill_loss(student, teacher), expected)
    torch.testing.assert_close(
        short_to_long_loss(student[9], teacher[9]), dense_cosine_distance(student[9], teacher[9])
    )
    with pytest.raises(ValueError, match="same layers"):
        short_distill_loss(student, {2: teacher[2]})
    with pytest.raises(ValueError, match="same layers"):
        short_distill_loss({}, {})


def test_loss_weights_reproduce_the_published_training() -> None:
    ratio = {"long": 4, "short": 3, "original": 1}
    weights = {"ratio": ratio, "short_distill_weight": 5.0, "short_to_long_weight": 10.0}
    assert loss_weights("token_share", **weights) == {"long": 1, "short": 3.75, "original": 2.5}
    assert loss_weights("formula", **weights) == {"long": 1, "short": 5, "original": 10}
    with pytest.raises(ConfigError, match=r"training\.weighting: 'equal'"):
        loss_weights("equal", **weights)
