"""Activation checkpointing: what is recomputed, what is held; the results stay the same."""

from pathlib import Path

import pytest
import torch
from operator_counts import LiveBytes, OperatorCalls
from tiny_training import MakeJob

from longred.attention import flash
from longred.attention.backends import BACKENDS
from longred.models.load import hidden_states, load_model
from longred.training.layers.activations import (
    CHECKPOINTING,
    checkpoint_activations,
    holding_activations,
)
from longred.training.machine import MACHINE_METRICS
from longred.training.trainer import Trainer

NUM_LAYERS = 3


def model_of(folder: Path, kind: str):
    model = load_model(folder).train()
    checkpoint_activations(model, kind)
    return model


def tokens(length: int = 64) -> torch.Tensor:
    return torch.randint(2, 500, (2, length), generator=torch.Generator().manual_seed(0))


def backward(model) -> dict[str, torch.Tensor]:
    states = hidden_states(model, tokens(), layers=[1, 3])
    (states[1].square().sum() + states[3].abs().sum()).backward()
    return {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


def test_attention_runs_once_where_its_output_is_held(tiny_model_folder: Path):
    found = {}
    for kind in CHECKPOINTING:
        model = model_of(tiny_model_folder, kind)
        with OperatorCalls() as calls:
            grads = backward(model)
        counts = calls.counts
        found[kind] = (
            counts["aten::_scaled_dot_product_flash_attention_for_cpu"],
            counts["aten::silu"],
            grads,
        )
    assert {kind: run[:2] for kind, run in found.items()} == {
        "none": (NUM_LAYERS, NUM_LAYERS),
        "selective": (NUM_LAYERS, 2 * NUM_LAYERS),
        "full": (2 * NUM_LAYERS, 2 * NUM_LAYERS),
    }
    for name, grad in found["none"][2].items():
        assert torch.equal(grad, found["selective"][2][name])
        assert torch.equal(grad, found["full"][2][name])


def test_more_checkpointing_holds_fewer_bytes(tiny_model_folder: Path):
    held, peak = {}, {}
    for kind in CHECKPOINTING:
        model = model_of(tiny_model_folder, kind)
        with LiveBytes() as live:
            states = hidden_states(model, tokens(), layers=[3])
            held[kind] = live.now
            states[3].sum().backward()
        peak[kind] = live.peak
    assert held["full"] < held["selective"] < held["none"] / 3
    assert max(peak["full"], peak["selective"]) < peak["none"]
    # Selective also holds a hidden value and a log-sum-exp per head, for every layer and token.
    assert held["selective"] - held["full"] == NUM_LAYERS * 2 * 64 * (64 + 4) * 4


def test_activations_are_held_inside(tiny_model_folder: Path):
    model = model_of(tiny_model_folder, "full")
    with OperatorCalls() as calls, holding_activations(model):
        backward(model)
    assert calls.counts["aten::silu"] == NUM_LAYERS
    with OperatorCalls() as calls:
        backward(model)
    assert calls.counts["aten::silu"] == 2 * NUM_LAYERS


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_runs_once_too(name: str, tiny_model_folder: Path, monkeypatch):
    """The packages wrap their kernel in an operator of these names; here it runs on a CPU."""
    operators = torch.library.Library("flash_attn_3" if name.endswith("3") else "flash_attn", "DEF")
    operator = "fwd" if name.endswith("3") else "_flash_attn_forward"
    operators.define(f"{operator}(Tensor q, Tensor k, Tensor v) -> Tensor")
    calls = []

    def kernel(q, k, v):
        calls.append(name)
        q, k, v = (x.transpose(1, 2).float() for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True
        )
        return out.transpose(1, 2).to(torch.bfloat16)

    operators.impl(operator, kernel, "CPU")
    call = getattr(getattr(torch.ops, operators.ns), operator)

    class Flash(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            out = call(q, k, v)
            ctx.save_for_backward(q, k, v, out)
            return out

        @staticmethod
        def backward(ctx, grad):
            _, k, v, out = ctx.saved_tensors
            return grad + 0 * out, torch.zeros_like(k), v * 0

    def rows(q, k, v, **options):
        return Flash.apply(q, k, v)

    monkeypatch.setattr(flash, "load", lambda _: flash.Kernels(rows, rows))
    grads = {}
    for kind in CHECKPOINTING:
        model = load_model(tiny_model_folder, dtype=torch.bfloat16).train()
        checkpoint_activations(model, kind)
        for layer in model.base_model.layers:
            layer.self_attn.attention_backend = BACKENDS[name]
        calls.clear()
        grads[kind] = backward(model)
        assert len(calls) == (2 if kind == "full" else 1) * NUM_LAYERS, kind
    for kind in ("selective", "full"):
        assert all(torch.equal(grads[kind][n], grad) for n, grad in grads["none"].items())


@pytest.mark.medium
@pytest.mark.parametrize("method", ["longred-c", "lora"])
def test_only_large_micro_batches_are_computed_again(method, make_job: MakeJob, tmp_path: Path):
    """Long blocks have 128 tokens; micro-batches of short blocks of 32 stay below the threshold."""
    counts, metrics = {}, {}
    values = {"method": method, "micro_batch_tokens": 128, "short_micro_batch_tokens": 64}
    for kind in ("none", "selective"):
        job = make_job(activation_checkpointing=kind, uncheckpointed_tokens=64, **values)
        trainer = Trainer(job, tmp_path / kind)
        with OperatorCalls() as calls:
            metrics[kind] = dict(trainer.train_step())
        counts[kind] = calls.counts["aten::rsqrt"]
        metrics[kind] = {k: v for k, v in metrics[kind].items() if k not in MACHINE_METRICS}
    assert metrics["selective"] == metrics["none"]
    long_rows = job.rows["long"]
    # Two norms in each layer.
    assert counts["selective"] - counts["none"] == 2 * NUM_LAYERS * long_rows


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_attention_of_the_gpu_runs_once_too(tiny_model_folder: Path):
    for kind, expected in (("none", 1), ("selective", 1), ("full", 2)):
        model = load_model(tiny_model_folder, dtype=torch.bfloat16, device="cuda").train()
        checkpoint_activations(model, kind)
        with OperatorCalls() as calls:
            hidden_states(model, tokens().cuda(), layers=[3])[3].sum().backward()
        kernels = [
            count
            for name, count in calls.counts.items()
            if ("scaled_dot_product" in name or "flash_attn" in name) and "backward" not in name
        ]
        assert sum(kernels) == expected * NUM_LAYERS, calls.counts
