"""The optimizers and their state against an explicit float64 update."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import MakeJob
from torch import nn

from longred.errors import MismatchError, PreflightError
from longred.training import host_state
from longred.training.optimizer import (
    build_optimizer,
    load_optimizer_tensors,
    named_weights,
    optimizer_tensors,
    update,
)

LARGE = 64
"""Side of a weight whose moments are stored in 8 bits."""


def small_model(size: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, size), nn.LayerNorm(size), nn.Linear(size, size))


def gradients(step: int, model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        name: torch.randn(weight.shape, generator=generator)
        for name, weight in named_weights(model).items()
    }


def take_steps(model: nn.Module, optimizer, job, steps) -> None:
    for step in steps:
        for name, grad in gradients(step, model).items():
            weight = named_weights(model)[name]
            weight.grad = grad.to(weight.device, copy=True)
        update(optimizer, step, job)


@pytest.mark.parametrize("decay_norms", [False, True])
def test_updates_against_float64(decay_norms, make_job: MakeJob):
    settings = {"weight_decay": 0.3, "decay_norms": decay_norms}
    job = make_job(learning_rate=1e-2, warmup_steps=4, betas=(0.7, 0.9), **settings)
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
            decay = 0.3 if expected[name].ndim > 1 or decay_norms else 0.0
            expected[name] -= rate * (mean / (square.sqrt() + job.epsilon) + decay * expected[name])
    take_steps(model, build_optimizer(model, job), job, range(1, 8))
    for name, weight in named_weights(model).items():
        torch.testing.assert_close(weight.detach().double(), expected[name], rtol=0, atol=4e-7)


def test_eight_bit_updates_against_float64(make_job: MakeJob):
    """Apply the same rule to moments rounded blockwise to the nearest of 255 values."""
    job = make_job(optimizer="adamw8bit", learning_rate=1e-2, warmup_steps=0, weight_decay=0.3)
    model = small_model(LARGE)
    optimizer = build_optimizer(model, job)
    steps = range(1, 5)
    take_steps(model, optimizer, job, steps)
    maps = {
        kind: optimizer.state[model[2].weight][kind].qmap.double()
        for kind in ("exp_avg", "exp_avg_sq")
    }
    fresh = named_weights(small_model(LARGE))
    for name, weight in named_weights(model).items():
        expected = fresh[name].detach().double()
        kept = {kind: torch.zeros_like(expected) for kind in maps}
        for step in steps:
            grad = gradients(step, model)[name].double()
            first = 0.9 * kept["exp_avg"] + 0.1 * grad
            second = 0.95 * kept["exp_avg_sq"] + 0.05 * grad**2
            mean, square = first / (1 - 0.9**step), second / (1 - 0.95**step)
            decay = 0.3 if expected.ndim > 1 else 0.0
            expected -= 1e-2 * (mean / (square.sqrt() + job.epsilon) + decay * expected)
            kept = {"exp_avg": first, "exp_avg_sq": second}
            if name == "2.weight":
                kept = {kind: rounded(value, maps[kind]) for kind, value in kept.items()}
        error = (weight.detach().double() - expected).norm() / expected.norm()
        # In float32 a value halfway between two codes may round either way.
        assert error < 1e-5, name


def rounded(value: torch.Tensor, qmap: torch.Tensor) -> torch.Tensor:
    blocks = value.reshape(-1, 256)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / scale)[..., None].sub(qmap).abs().argmin(-1)
    return (qmap[nearest] * scale).reshape(value.shape)


def test_eight_bits_take_a_quarter_of_the_memory(make_job: MakeJob):
    sizes = {}
    for name in ("adamw", "adamw8bit"):
        job = make_job(optimizer=name)
        model = nn.Linear(512, 512, bias=False)
        optimizer = build_optimizer(model, job)
        take_steps(model, optimizer, job, [1])
        tensors = optimizer_tensors(optimizer, model)
        sizes[name] = sum(t.numel() * t.element_size() for t in tensors.values())
    assert sizes["adamw8bit"] < 0.26 * sizes["adamw"]


on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
def test_state_in_host_memory_changes_no_bit(kind, device, make_job: MakeJob, monkeypatch):
    if kind == "adamw8bit":
        pytest.importorskip("torchao")
    monkeypatch.setattr(host_state, "PART_BYTES", 1000)
    job = make_job(optimizer=kind, learning_rate=1e-2)
    weights, states = [], []
    for offload in (False, True):
        model = small_model(LARGE).to(device)
        chosen = dataclasses.replace(job, optimizer_offload=offload)
        optimizer = build_optimizer(model, chosen)
        take_steps(model, optimizer, chosen, range(1, 5))
        weights.append(named_weights(model))
        states.append(optimizer_tensors(optimizer, model))
    assert not optimizer.inner.state, "no state stays on the weights' device"
    assert {value.device.type for value in states[1].values()} == {"cpu"}
    assert len(list(optimizer._parts())) == 0, "the gradients are reset"
    for here, there in (weights, states):
        assert here.keys() == there.keys()
        assert all(torch.equal(here[name].cpu(), there[name].cpu()) for name in here)


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("offload", [False, True])
def test_restored_state_goes_on_bit_identically(kind, offload, make_job: MakeJob, tmp_path: Path):
    job = make_job(optimizer=kind, optimizer_offload=offload, learning_rate=1e-2)
    whole, parts = small_model(LARGE), small_model(LARGE)
    take_steps(whole, build_optimizer(whole, job), job, range(1, 7))
    before = build_optimizer(parts, job)
    take_steps(parts, before, job, range(1, 4))
    save_file(optimizer_tensors(before, parts), tmp_path / "state.safetensors")
    # The state may move between host and device at a resume.
    after = build_optimizer(parts, dataclasses.replace(job, optimizer_offload=not offload))
    load_optimizer_tensors(after, parts, load_file(tmp_path / "state.safetensors"))
    take_steps(parts, after, job, range(4, 7))
    for name, weight in named_weights(parts).items():
        assert torch.equal(weight, named_weights(whole)[name])


def test_state_of_another_optimizer_is_refused(make_job: MakeJob):
    model = small_model(LARGE)
    optimizer = build_optimizer(model, make_job())
    take_steps(model, optimizer, make_job(), [1])
    tensors = optimizer_tensors(optimizer, model)
    other = build_optimizer(model, make_job(optimizer="adamw8bit"))
    with pytest.raises(MismatchError, match=r"model or optimizer .*: exp_avg_codes\.2\.weight"):
        load_optimizer_tensors(other, model, tensors)


def test_a_missing_package_is_named(make_job: MakeJob, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(PreflightError, match=r"training\.optimizer: adamw8bit needs torchao"):
        build_optimizer(small_model(), make_job(optimizer="adamw8bit"))


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


def test_pinned_memory_is_given_out_of_few_slabs(monkeypatch: pytest.MonkeyPatch):
    """Pinning needs a GPU; the layout of the slabs does not."""
    slabs = host_state._PinnedSlabs()
    monkeypatch.setattr(slabs, "_new", lambda size: torch.zeros(size, dtype=torch.uint8))
    monkeypatch.setattr(host_state, "SLAB_BYTES", 4096)
    likes = [torch.empty(300), torch.empty(10, 100, dtype=torch.uint8), torch.empty(()),
             torch.empty(2000), torch.empty(200, dtype=torch.bfloat16)]  # fmt: skip
    given = [slabs.like(like) for like in likes]
    for number, (place, like) in enumerate(zip(given, likes, strict=True)):
        assert (place.shape, place.dtype) == (like.shape, like.dtype)
        assert place.is_contiguous()
        place.fill_(number + 1)
    assert all(bool((place == number + 1).all()) for number, place in enumerate(given))
    # 1,536 + 1,024 + 512 + 512 bytes fit the first slab; 8,000 need their own.
    assert [len(slab) for slab in slabs.slabs] == [4096, 8192]
    assert slabs.used == [3584, 8192]
