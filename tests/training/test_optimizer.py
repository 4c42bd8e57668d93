"""AdamW, its schedule and its state, against the update rule written out in float64."""

import dataclasses

import pytest
import torch
from tiny_training import MakeJob
from torch import nn

from longred.errors import MismatchError
from longred.training.optimizer import (
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    named_weights,
    optimizer_tensors,
    update,
)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))


def gradients(step: int, model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        name: torch.randn(weight.shape, generator=generator)
        for name, weight in named_weights(model).items()
    }


def take_steps(model: nn.Module, optimizer, job, steps) -> None:
    for step in steps:
        for name, grad in gradients(step, model).items():
            named_weights(model)[name].grad = grad.clone()
        update(optimizer, step, job)


def test_updates_against_float64(make_job: MakeJob):
    job = make_job(learning_rate=1e-2, warmup_steps=4, weight_decay=0.3, betas=(0.7, 0.9))
    model = small_model()
    expected = {name: w.detach().double() for name, w in named_weights(model).items()}
    first = {name: torch.zeros_like(w) for name, w in expected.items()}
    second = {name: torch.zeros_like(w) for name, w in expected.items()}
    for step in range(1, 8):
        rate = 1e-2 * min(1.0, step / 4)
        for name, grad in gradients(step, model).items():
            grad = grad.double()
            first[name] = 0.7 * first[name] + 0.3 * grad
            second[name] = 0.9 * second[name] + 0.1 * grad**2
            mean, square = first[name] / (1 - 0.7**step), second[name] / (1 - 0.9**step)
            decay = 0.3 if expected[name].ndim > 1 else 0.0
            expected[name] -= rate * (mean / (square.sqrt() + job.epsilon) + decay * expected[name])
    take_steps(model, build_optimizer(model, job), job, range(1, 8))
    for name, weight in named_weights(model).items():
        torch.testing.assert_close(weight.detach().double(), expected[name], rtol=0, atol=2e-7)


def test_schedule(make_job: MakeJob):
    job = make_job(learning_rate=0.5, warmup_steps=2)
    assert [learning_rate(step, job) for step in (1, 2, 3, 9)] == [0.25, 0.5, 0.5, 0.5]
    assert learning_rate(1, dataclasses.replace(job, warmup_steps=0)) == 0.5


def test_restored_state_goes_on_bit_identically(make_job: MakeJob):
    job = make_job(learning_rate=1e-2)
    whole, parts = small_model(), small_model()
    take_steps(whole, build_optimizer(whole, job), job, range(1, 7))
    before = build_optimizer(parts, job)
    take_steps(parts, before, job, range(1, 4))
    after = build_optimizer(parts, job)
    load_optimizer_tensors(after, parts, optimizer_tensors(before, parts))
    take_steps(parts, after, job, range(4, 7))
    for name, weight in named_weights(parts).items():
        assert torch.equal(weight, named_weights(whole)[name])


def test_state_of_another_model_is_refused(make_job: MakeJob):
    job = make_job()
    model = small_model()
    optimizer = build_optimizer(model, job)
    take_steps(model, optimizer, job, [1])
    tensors = optimizer_tensors(optimizer, model)
    with pytest.raises(MismatchError, match=r"first difference: exp_avg\.0\.bias"):
        load_optimizer_tensors(
            optimizer, model, {k: v for k, v in tensors.items() if k != "exp_avg.0.bias"}
        )
    with pytest.raises(MismatchError, match="shape"):
        load_optimizer_tensors(optimizer, model, {**tensors, "exp_avg.0.bias": torch.ones(9)})
