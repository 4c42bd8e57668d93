"""Smoke test: libraries and kernels, a tiny training, its handshake, and the attention KL."""

import math
import tempfile
from pathlib import Path
from typing import Any

import profiling
import torch
import training
from transformers import AutoModelForCausalLM

from gpu.child import Check
from gpu.sizes import device_of, scale_of
from longred.attention.probe import kernel_report
from longred.models.load import load_config
from longred.profiling.attention_kl import attention_kl
from longred.training.handshake import shake_hands
from longred.training.layers import compiling
from longred.training.layers.compiling import compiler_problem
from longred.training.trainer import Trainer


def measure(check: Check) -> None:
    """Report device and kernels, train a tiny model (bfloat16 on a GPU), run the attention KL."""
    device = device_of(check)
    _, heads, key_heads, dim, _ = scale_of(check).kl
    report = kernel_report(device, torch.bfloat16, dim)
    check.line("kernels", settings={"head_dim": dim}, measured={**_libraries(device), **report})
    _train(check)
    _shake_hands(check, device)
    _kl(check, heads, key_heads, dim)


def _libraries(device: torch.device) -> dict[str, Any]:
    """Return the GPU's memory, compute capability and multiprocessors; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    facts = torch.cuda.get_device_properties(device)
    return {
        "memory_bytes": facts.total_memory,
        "free_bytes": torch.cuda.mem_get_info()[0],
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
    }


def _train(check: Check) -> None:
    preset = training.PRESETS["tiny" if check.tiny else "gpu-tiny"]
    training.random_weights()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training.write_inputs(preset, preset.layers[0], folder, 2)
        trainer = Trainer(training.make_job(preset, preset.layers[0], folder, 2), folder / "work")
        steps = [dict(trainer.train_step()) for _ in range(2)]
    losses = {key: value for key, value in steps[0].items() if key.endswith("loss")}
    assert all(math.isfinite(value) for value in losses.values()), losses
    assert steps[0]["train/grad_norm"] > 0
    assert steps[1]["train/loss"] != steps[0]["train/loss"], "the update did not change the loss"
    if trainer.device.type == "cuda" and trainer.job.fused:
        problem = compiler_problem("cuda")
        assert problem is None, f"norms, RoPE and MLPs ran uncompiled: {problem}"
        # The compiled functions: norm, RoPE and gated MLP, each forward and backward.
        assert compiling._compiled.cache_info().currsize == 6, compiling._compiled.cache_info()
    check.line("training", settings=dict(preset.settings), measured=losses)


def _shake_hands(check: Check, device: torch.device) -> None:
    """Compare training with the model's own code on this device, in float32 and bfloat16."""
    preset = training.PRESETS["tiny" if check.tiny else "gpu-tiny"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training.write_inputs(preset, preset.layers[0], folder, 1)
        torch.manual_seed(0)
        original = AutoModelForCausalLM.from_config(
            load_config(folder / "teacher"), trust_remote_code=False
        )
        original.save_pretrained(folder / "teacher")
        extended = load_config(folder / "student")
        found = list(shake_hands(folder / "teacher", extended, device=device, dtype=torch.bfloat16))
    check.line("handshake", settings={}, measured={one.part: one.text for one in found})
    assert all(one.passed is not False for one in found), found


def _kl(check: Check, heads: int, key_heads: int, dim: int) -> None:
    """Run the attention KL once with the device's kernel, and compare it with float64."""
    length = 64 if check.tiny else 1024
    inputs = profiling.tensors(heads, key_heads, length, dim, check.device_type, torch.bfloat16)
    with torch.no_grad():
        found = attention_kl(*inputs).double()
        # In float64, blocks are computed by plain torch on every device.
        exact = attention_kl(*(x.double() for x in inputs))
    error = (found - exact).abs().max().item()
    assert error < 1e-4, f"the attention KL is off by {error:.1e} nats"
    check.line(
        "attention-kl",
        settings={"length": length, "dtype": "bfloat16"},
        measured={"largest_error_nats": error, "mean_kl_nats": exact.mean().item()},
    )
