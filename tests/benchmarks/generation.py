"""Measure a model's speed and memory in an evaluation: reading prompts, generating, scoring texts.

    python tests/benchmarks/generation.py gpu --output tests/benchmarks/results/generation-gpu.json
    python tests/benchmarks/generation.py tiny

The model has Llama-3-8B's shape, random bfloat16 weights and the attention that evaluations use.
`read` is generating one token, `generate` generating the remaining ones. `score` is the likelihood
of a prompt's last tokens, computing only their logits; `whole` is the same from the logits of all
tokens. The read time of each length is first predicted from micro-benchmarks. `tiny` is a small
float32 model on the CPU. Needs torch and transformers only.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from longred.attention.backends import choose_backend, needs_of
from longred.attention.function import ATTENTION_NAME, guard, register
from longred.cost.calibrate import calibrate
from longred.cost.flops import forward_flops
from longred.cost.plan import flops_seconds
from longred.cost.shape import shape_of
from longred.evaluation.generation import Generator, Sampling
from longred.evaluation.runner import Runner
from longred.models.load import hidden_states

SIZES: dict[str, dict[str, Any]] = {
    "gpu": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
    },
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 512,
    },
}
LENGTHS = {"gpu": (4096, 32768, 131072), "tiny": (128, 256)}
NEW_TOKENS = {"gpu": 128, "tiny": 8}
SCORED = 64


def make_model(preset: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[preset],
        max_position_embeddings=max(LENGTHS[preset]) + NEW_TOKENS[preset],
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 8e7},
        attn_implementation=ATTENTION_NAME,
        bos_token_id=None,
        eos_token_id=None,
    )
    register()
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    guard(model, choose_backend("auto", needs_of(config, device, dtype)))
    return model


class NoTokenizer:
    """Stands in for a tokenizer where no answer ends early."""

    eos_token_id = None


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, float, Any]:
    """Return time, peak memory above the start, and result of a call, after a warm-up call."""
    work()
    on_gpu = device.type == "cuda"
    before = 0
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    result = work()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else 0
    return seconds, float(peak), result


def score(model: PreTrainedModel, ids_BT: Tensor) -> float:
    """Return the log-likelihood of the last SCORED tokens, computing only their logits."""
    last = model.config.num_hidden_layers
    hidden = hidden_states(model, ids_BT, layers=[last])[last][0, -SCORED - 1 : -1]
    logits = model.get_output_embeddings()(hidden).float()
    return -float(F.cross_entropy(logits, ids_BT[0, -SCORED:], reduction="sum"))


def score_whole(model: PreTrainedModel, ids_BT: Tensor) -> float:
    """Return the same log-likelihood from the logits of all tokens."""
    logits = model(ids_BT, use_cache=False).logits.float()[0, -SCORED - 1 : -1]
    return -float(F.cross_entropy(logits, ids_BT[0, -SCORED:], reduction="sum"))


@torch.no_grad()
def measure(
    preset: str, lengths: Sequence[int] | None = None, new_tokens: int | None = None
) -> dict[str, Any]:
    """Measure each length; lengths and number of new tokens default to the preset's."""
    lengths = LENGTHS[preset] if lengths is None else lengths
    device = torch.device("cuda" if preset == "gpu" else "cpu")
    dtype = torch.bfloat16 if preset == "gpu" else torch.float32
    model = make_model(preset, device, dtype)
    shape = shape_of(model.config)
    with torch.enable_grad():
        speeds = calibrate(shape, lengths, tokens=8192, device=device, dtype=dtype)
    new = NEW_TOKENS[preset] if new_tokens is None else new_tokens
    found: dict[str, Any] = {"shape": SIZES[preset], "dtype": str(dtype), "new_tokens": new}
    for length in lengths:
        ids = torch.randint(shape.vocab_size, (1, length), device=device)
        engine = Generator(Runner(model), NoTokenizer())
        flops = forward_flops(shape, length, head=False) * length
        planned = flops_seconds(flops, length, speeds)
        print(f"{length:>7} tokens  predicted read time {planned:.3f} s", flush=True)

        def generate(count: int, ids: Tensor = ids, engine: Generator = engine) -> list[int]:
            (answer,) = engine.generate(
                [ids[0].cpu().numpy()], max_tokens=count, stop=[], sampling=Sampling()
            )
            return answer

        read, read_peak, _ = timed(lambda: generate(1), device)
        both, _, answer = timed(lambda: generate(new), device)
        assert len(answer) == new
        ours, our_peak, likelihood = timed(lambda ids=ids: score(model, ids), device)
        row = {
            "planned_seconds": planned,
            "read_seconds": read,
            "read_tokens_per_second": length / read,
            "read_mfu": flops.total / read / speeds.peak_flops,
            "read_peak_bytes": read_peak,
            "generated_tokens_per_second": (new - 1) / max(both - read, 1e-9),
            "score_seconds": ours,
            "score_peak_bytes": our_peak,
            **_whole(model, ids, likelihood, device),
        }
        found[str(length)] = row
        print(
            f"{length:>7} tokens  read {row['read_tokens_per_second']:,.0f}/s, "
            f"generated {row['generated_tokens_per_second']:,.1f}/s, scored in {ours:.3f} s "
            f"with {our_peak / 2**30:.2f} GiB",
            flush=True,
        )
    return found


def _whole(
    model: PreTrainedModel, ids: Tensor, likelihood: float, device: torch.device
) -> dict[str, Any]:
    """Score from the logits of all tokens, unless out of memory; check that both scores agree."""
    try:
        seconds, peak, other = timed(lambda: score_whole(model, ids), device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"whole": "out of memory"}
    error = abs(likelihood - other) / abs(other)
    assert error < 2e-2, f"log-likelihoods differ: {likelihood} and {other}"
    return {"whole_seconds": seconds, "whole_peak_bytes": peak, "relative_difference": error}


def main() -> None:
    """Measure a preset and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=SIZES)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found = {
        "date": date.today().isoformat(),
        "machine": gpu or f"{platform.machine()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **measure(arguments.preset),
    }
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
