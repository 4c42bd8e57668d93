"""Memory by part, against what autograd really holds."""

import shutil

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from longred.attention.function import ATTENTION_NAME, guard, register
from longred.cost.flops import batches
from longred.cost.memory import (
    batch_parts,
    layer_bytes,
    losses_parts,
    memory_parts,
    reserve_bytes,
)
from longred.cost.shape import shape_of
from longred.cost.speeds import GIB
from longred.method.job import TrainingJob
from longred.models.load import hidden_states
from longred.training.frozen import train_attention_alone
from longred.training.layers.fp8 import to_fp8
from longred.training.layers.fused import fuse
from longred.training.layers.masters import hold_no_copies

TOKENS = 512
CONFIG = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 704,
    "vocab_size": 512,
}


def held_bytes(dtype: str, *, is_fused: bool, fp8: bool = False, trained: str = "all") -> float:
    """Sum the storages that autograd saves in a forward pass, without the weights."""
    register()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(**CONFIG, attn_implementation=ATTENTION_NAME)
    )
    guard(model)
    if trained == "attention":
        train_attention_alone(model, dtype=dtype)
    if fp8:
        # Compiled as on a GPU, where the rounded weights are not held.
        to_fp8(model, emulate=True, is_compiled=True)
    if is_fused:
        fuse(model)
    hold_no_copies(model)
    model.train()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast(
            "cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16", cache_enabled=False
        ),
    ):
        states = hidden_states(model, torch.zeros(1, TOKENS, dtype=torch.long), layers=[6])
        assert states[6].requires_grad
    return float(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))


def make_plain_job(**values: object) -> TrainingJob:
    folders = dict.fromkeys(("data_folder", "student_folder", "teacher_folder", "data_digest"), "")
    defaults = {"method": "cpt", "rows": {"long": 1}, "num_steps": 1}
    windows = {"original_window": 256, "target_window": TOKENS}
    return TrainingJob(**{**folders, **defaults, **windows, **values})


@pytest.mark.medium
@pytest.mark.parametrize(
    ("dtype", "is_fused", "fp8", "trained"),
    [
        ("float32", True, False, "all"),
        ("bfloat16", True, False, "all"),
        ("float32", False, False, "all"),
        ("bfloat16", False, False, "all"),
        ("float32", True, False, "attention"),
        ("bfloat16", True, False, "attention"),
        ("float32", False, False, "attention"),
        ("bfloat16", False, False, "attention"),
        pytest.param(
            *("bfloat16", True, True, "all"),
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
        ),
    ],
)
def test_activations_are_what_autograd_holds(
    dtype: str, is_fused: bool, fp8: bool, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longred.attention.sdpa._is_slow_in_bf16", lambda value: False)
    shape = shape_of(LlamaConfig(**CONFIG))
    job = make_plain_job(dtype=dtype, fused=is_fused, fp8=fp8, trained=trained)
    (batch,) = batches(job, {"long": TOKENS})
    planned = losses_parts(shape, job, batch)["activations"]
    held = held_bytes(dtype, is_fused=is_fused, fp8=fp8, trained=trained)
    # The input of the first layer needs no gradient if the embedding is frozen: planned for it.
    assert planned == pytest.approx(held, rel=0.03 if trained == "all" else 0.05)
    assert planned == pytest.approx(6 * layer_bytes(shape, job, TOKENS), rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_a_student_whose_attention_is_trained(dtype: str) -> None:
    """Masters, gradients and moments of attention alone; MLPs in the compute type."""
    shape = shape_of(LlamaConfig(**CONFIG))
    job = make_plain_job(dtype=dtype, trained="attention")
    found = memory_parts(shape, job, batches(job, {"long": TOKENS}), device="cuda")
    attention, mlps = 6 * (2 * 256 * 256 + 2 * 256 * 128), 6 * 3 * 256 * 704
    others = 2 * 512 * 256 + (2 * 6 + 1) * 256
    assert shape.num_parameters == attention + mlps + others
    assert found["weights"] == found["gradients"] == 4 * attention
    assert found["optimizer"] == 8 * attention
    width = 2 if dtype == "bfloat16" else 4
    assert found["frozen weights"] == width * mlps + 4 * others


def test_each_saver_saves_its_own_part() -> None:
    shape = shape_of(LlamaConfig(**CONFIG))

    def parts(device: str = "cuda", **values: object) -> dict[str, float]:
        job = make_plain_job(dtype="bfloat16", uncheckpointed_tokens=0, **values)
        return dict(memory_parts(shape, job, batches(job, {"long": TOKENS}), device=device))

    plain = parts()
    selective, full = (parts(activation_checkpointing=kind) for kind in ("selective", "full"))
    assert plain["activations"] > selective["activations"] > full["activations"]
    assert parts(fused=False)["activations"] > plain["activations"]
    # Compiled layers hold copies of their weights.
    copies = parts(compile=True)["activations"] - parts(fused=False)["activations"]
    assert copies == pytest.approx(2 * shape.num_linear)
    assert parts(mlp_tile_tokens=128)["activations"] < plain["activations"]
    assert parts(optimizer="adamw8bit")["optimizer"] == pytest.approx(
        plain["optimizer"] / 4, rel=0.02
    )
    two = {"num_processes": 2, "sequence_parallel": 2}
    shared = parts(parallel=two)
    assert shared["weights"] == plain["weights"] / 2
    assert shared["activations"] == pytest.approx(plain["activations"] / 2)
    copies = parts(parallel={**two, "replicas": 2})
    assert copies["weights"] == plain["weights"]


def test_the_crossing_state_is_not_added_to_activations() -> None:
    """Parts of an offloaded state are on the GPU during the update, when activations are freed."""
    shape = shape_of(LlamaConfig(**CONFIG))
    job = make_plain_job(dtype="bfloat16", optimizer_offload=True)
    work = batches(job, {"long": TOKENS})
    found = memory_parts(shape, job, work, device="cuda")
    inside = sum(batch_parts(shape, job, work[0]).values())
    # All moments of so small a model are in flight at once and exceed its activations.
    crossing = 8.0 * shape.num_parameters
    assert sum(found.values()) == pytest.approx(
        8.0 * shape.num_parameters + max(inside, crossing), rel=1e-6
    )


def test_the_reserve_is_the_larger_of_both() -> None:
    assert reserve_bytes(40 * GIB, device="cuda") == 2 * GIB
    assert reserve_bytes(100 * GIB, device="cuda") == pytest.approx(3 * GIB)
    assert reserve_bytes(100 * GIB, device="cpu") == 0
