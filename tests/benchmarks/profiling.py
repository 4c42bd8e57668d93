"""Measure time, peak memory and accuracy of the attention KL, compared with dense attention maps.

    python tests/benchmarks/profiling.py cpu|gpu|tiny [--output RESULT.json]

`cpu`: 4 heads of dimension 64, each measurement in its own process, so that peaks are separate.
`gpu`: Llama-3-8B's shape, all 32 layers of one sequence of 32K and of 128K tokens; sampled queries
compared with float64; and the length at which dense maps run out of memory. `tiny` runs the code of
`gpu` on a small shape on the CPU. Needs only torch and transformers (and Triton on a GPU); longred
need not be installed.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# A GPU machine may have this repository and torch, but no installed longred.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from longred.profiling.attention_kl import attention_kl

GOAL_SECONDS = {"32768": 4.0, "131072": 64.0}
"""For all layers of Llama-3-8B on a Hopper GPU, by length."""

Tensors = tuple[Tensor, Tensor, Tensor, Tensor]


def tensors(
    num_heads: int, num_key_heads: int, length: int, dim: int, device: str, dtype: torch.dtype
) -> Tensors:
    """Return queries and keys of a teacher, and the same with added noise for a student."""
    torch.manual_seed(0)
    query = torch.randn(1, num_heads, length, dim, device=device)
    key = torch.randn(1, num_key_heads, length, dim, device=device)
    near = [x + 0.2 * torch.randn_like(x) for x in (query, key)]
    return tuple(x.to(dtype) for x in (query, key, *near))  # type: ignore[return-value]


def dense(
    teacher_query: Tensor, teacher_key: Tensor, student_query: Tensor, student_key: Tensor
) -> Tensor:
    """Compute the KL the naive way, from the full attention maps of both models."""
    length, dim = teacher_query.shape[2:]
    repeats = teacher_query.shape[1] // teacher_key.shape[1]
    unseen = torch.ones(length, length, dtype=torch.bool, device=teacher_query.device).triu(1)
    logs = []
    for query, key in ((teacher_query, teacher_key), (student_query, student_key)):
        logits = query.float() @ key.float().repeat_interleave(repeats, 1).mT * dim**-0.5
        logs.append(logits.masked_fill(unseen, float("-inf")).log_softmax(-1))
    return (logs[0].exp() * (logs[0] - logs[1]).masked_fill(unseen, 0.0)).sum(-1)


WAYS: dict[str, Callable[..., Tensor]] = {"dense": dense, "attention_kl": attention_kl}


def measure_cpu(way: str, length: int, repeats: int) -> dict[str, float]:
    """Return the best time and the peak memory above the inputs, measured in this process."""
    call = WAYS[way]
    inputs = tensors(4, 4, length, 64, "cpu", torch.float32)
    seconds = []
    # The peak includes what the first call keeps allocated (threads, kernels).
    with torch.no_grad(), _Peak() as peak:
        call(*tensors(4, 4, 256, 64, "cpu", torch.float32))
        for _ in range(repeats):
            start = time.perf_counter()
            call(*inputs)
            seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "peak_mib": peak.bytes / 2**20}


class _Peak:
    """Sample the peak of resident memory above its level at the start."""

    def __enter__(self) -> "_Peak":
        self.bytes, self._start = 0, _resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self.bytes = max(self.bytes, _resident() - self._start)


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


def cpu() -> dict[str, Any]:
    """Compare with dense maps at 4,096 tokens; measure time and memory from 1,024 to 16,384."""

    def child(way: str, length: int, repeats: int) -> dict[str, float]:
        command = [sys.executable, __file__, "measure", way, str(length), str(repeats)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result: dict[str, float] = json.loads(output)
        print(f"{way:>14} {length:>6} tokens  {result['seconds']:.3f} s", flush=True)
        return result

    rows = {n: child("attention_kl", n, 3) for n in (1024, 2048, 4096, 8192, 16384)}
    maps = child("dense", 4096, 3)
    inputs = tensors(4, 4, 4096, 64, "cpu", torch.float32)
    exact = dense_float64(inputs, torch.arange(0, 4096, 61))
    error = (attention_kl(*inputs)[:, :, ::61].double() - exact).abs().max().item()
    return {
        "heads": 4,
        "head_dim": 64,
        "threads": torch.get_num_threads(),
        "dense_4096": maps,
        "attention_kl": rows,
        "times_faster_than_dense_at_4096": maps["seconds"] / rows[4096]["seconds"],
        "share_of_dense_peak_at_4096": rows[4096]["peak_mib"] / maps["peak_mib"],
        "seconds_16384_over_4096": rows[16384]["seconds"] / rows[4096]["seconds"],
        "peak_mib_16384_over_4096": rows[16384]["peak_mib"] / rows[4096]["peak_mib"],
        "largest_error_against_float64_nats": error,
    }


def dense_float64(inputs: Tensors, rows: Tensor) -> Tensor:
    """Return the float64 KL of sampled queries, from the same rounded queries and keys."""
    length, dim = inputs[0].shape[2:]
    repeats = inputs[0].shape[1] // inputs[1].shape[1]
    results = []
    for head in range(inputs[0].shape[1]):
        logs = []
        unseen = torch.arange(length, device=rows.device)[None] > rows[:, None]
        for query, key in (inputs[:2], inputs[2:]):
            logits = query[0, head, rows].double() @ key[0, head // repeats].double().T
            logs.append((logits * dim**-0.5).masked_fill(unseen, float("-inf")).log_softmax(-1))
        results.append((logs[0].exp() * (logs[0] - logs[1]).masked_fill(unseen, 0.0)).sum(-1))
    return torch.stack(results)[None]


def gpu(tiny: bool) -> dict[str, Any]:
    """Time all layers of one sequence and compare sampled queries with float64."""
    device, dtype = ("cpu", torch.float32) if tiny else ("cuda", torch.bfloat16)
    num_layers, num_heads, num_key_heads, dim = (2, 4, 2, 32) if tiny else (32, 32, 8, 128)
    found: dict[str, Any] = {"layers": num_layers, "heads": num_heads, "key_heads": num_key_heads}
    found |= {"head_dim": dim, "dtype": str(dtype), "device": device}
    if not tiny:
        found["gpu"] = torch.cuda.get_device_name()
    with torch.no_grad():
        for length in (256, 512) if tiny else (32768, 131072):
            inputs = tensors(num_heads, num_key_heads, length, dim, device, dtype)
            found[str(length)] = {
                **layers_seconds(inputs, num_layers),
                **exactness(inputs, length),
            }
            print(length, found[str(length)], flush=True)
        if not tiny:
            found["dense_out_of_memory_at"] = _dense_limit(num_heads, num_key_heads, dim)
    return found


def layers_seconds(inputs: Tensors, num_layers: int) -> dict[str, float]:
    """Return time and (on a GPU) peak memory of `num_layers` calls, after a warm-up call."""
    on_gpu = inputs[0].is_cuda
    attention_kl(*inputs)
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    for _ in range(num_layers):
        attention_kl(*inputs)
    if not on_gpu:
        return {"seconds_all_layers": time.perf_counter() - start}
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() - before
    return {"seconds_all_layers": seconds, "peak_mib": peak / 2**20}


def exactness(inputs: Tensors, length: int) -> dict[str, float]:
    """Compare sampled queries with float64."""
    rows = torch.linspace(0, length - 1, 64, device=inputs[0].device).round().long()
    exact = dense_float64(inputs, rows)
    error = (attention_kl(*inputs)[:, :, rows].double() - exact).abs()
    large = exact >= 1e-3
    return {
        "mean_kl_nats": exact.mean().item(),
        "largest_relative_error": (error / exact)[large].max().item(),
        "largest_error_below_1e-3_nats": error[~large].max().item() if (~large).any() else 0.0,
    }


def _dense_limit(num_heads: int, num_key_heads: int, dim: int) -> int | None:
    """Return the first length (1,024, 2,048, …) whose dense maps run out of memory, if any."""
    length = 1024
    while length <= 131072:
        torch.cuda.empty_cache()
        try:
            dense(*tensors(num_heads, num_key_heads, length, dim, "cuda", torch.bfloat16))
        except torch.OutOfMemoryError:
            return length
        length *= 2
    return None


def goals(preset: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each goal, the measured value, and whether the goal is reached."""
    if preset == "cpu":
        aims = [
            ("times faster than dense maps at 4,096", "times_faster_than_dense_at_4096", 5.0, True),
            ("share of their peak memory", "share_of_dense_peak_at_4096", 0.03, False),
        ]
        measured = [(what, found[key], aim, at_least) for what, key, aim, at_least in aims]
    else:
        measured = []
        for length, row in ((n, found[n]) for n in found if n.isdigit()):
            if length in GOAL_SECONDS:
                what = f"seconds for all layers at {int(length):,}"
                measured.append((what, row["seconds_all_layers"], GOAL_SECONDS[length], False))
            for key, aim in (
                ("largest_relative_error", 1e-3),
                ("largest_error_below_1e-3_nats", 1e-5),
            ):
                what = f"{key.replace('_', ' ')} at {int(length):,}"
                measured.append((what, row[key], aim, False))
    return [
        {
            "goal": f"{what}: {'at least' if at_least else 'at most'} {aim:g}",
            "measured": value,
            "reached": value >= aim if at_least else value <= aim,
        }
        for what, value, aim, at_least in measured
    ]


def main() -> None:
    """Run a preset and write its JSON."""
    if sys.argv[1:2] == ["measure"]:
        way, length, repeats = sys.argv[2:]
        print(json.dumps(measure_cpu(way, int(length), int(repeats))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=("cpu", "gpu", "tiny"))
    parser.add_argument("--output", type=Path, help="path of the JSON result")
    arguments = parser.parse_args()
    if arguments.preset == "gpu" and not torch.cuda.is_available():
        parser.error("gpu: torch finds no GPU; use `tiny` to run the same code on the CPU")
    found = {
        "date": date.today().isoformat(),
        "preset": arguments.preset,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {platform.system()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **(cpu() if arguments.preset == "cpu" else gpu(tiny=arguments.preset == "tiny")),
    }
    found = json.loads(json.dumps(found))
    found["goals"] = goals(arguments.preset, found)
    text = json.dumps(found, indent=2) + "\n"
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
