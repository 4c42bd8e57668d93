import pytest
import torch
from torch import Tensor

from longred.objectives.hidden import cosine_distance, short_distill_loss, short_to_long_loss


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


def test_equal_states_give_exactly_zero_and_no_gradient() -> None:
    torch.manual_seed(0)
    state = torch.randn(3, 7, 33).bfloat16().float()
    student = state.clone().requires_grad_()
    loss = cosine_distance(student, state)
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()
