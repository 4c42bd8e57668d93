"""Measure time, memory and error of three ways to compute cross-entropy over a large vocabulary.

`python tests/benchmarks/cross_entropy.py` writes `results/cross-entropy.md`. Each way runs in its
own process, so that peak memory is measured separately. Seconds are CPU time, which other work on
the machine affects little.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from longred.objectives.cross_entropy import long_loss

RESULT = Path(__file__).parent / "results" / "cross-entropy.md"
WAYS = ("whole logits", "torch chunked", "ours")
SHAPE = (2048, 32000, 512)
SMALL = (2048, 2000, 128)
REPEATS = 2


def loss_of(way: str, hidden_BTD: Tensor, weight_VD: Tensor, tokens_BT: Tensor) -> Tensor:
    """Return the mean next-token cross-entropy of one row."""
    if way == "ours":
        return long_loss(hidden_BTD, weight_VD, tokens_BT)
    options = torch.nn.LinearCrossEntropyOptions() if way == "torch chunked" else None
    hidden_MD, target_M = hidden_BTD[0, :-1], tokens_BT[0, 1:]
    if torch.is_autocast_enabled("cpu"):
        # Autocast does not see inside the chunked operator, so its inputs are cast here.
        hidden_MD, weight_VD = hidden_MD.bfloat16(), weight_VD.bfloat16()
    return F.linear_cross_entropy(hidden_MD, weight_VD, target_M, options=options)


def case(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, output embedding and tokens, identical for every way."""
    num_tokens, vocabulary, dim = shape
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, num_tokens, dim, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, dim, generator=generator, dtype=torch.float64) / dim**0.5
    tokens = torch.randint(0, vocabulary, (1, num_tokens), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), tokens


def gradient_error(way: str, bf16: bool) -> float:
    """Return the relative error of the output embedding's gradient against float64."""
    hidden, exact, tokens = case(SMALL, torch.float64)
    long_loss(hidden, exact, tokens).backward()
    hidden, weight, tokens = case(SMALL, torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss_of(way, hidden, weight, tokens).backward()
    return float((weight.grad.double() - exact.grad).norm() / exact.grad.norm())


def measure(way: str, bf16: bool, num_threads: int) -> dict[str, float]:
    """Return the best time of a forward and backward pass, its peak memory and gradient error."""
    torch.set_num_threads(num_threads)
    hidden, weight, tokens = case(SHAPE, torch.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(REPEATS):
        hidden.grad = weight.grad = None
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(way, hidden, weight, tokens)
        loss.backward()
        seconds.append(time.process_time() - started)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = gradient_error(way, bf16)
    return {"seconds": min(seconds), "mebibytes": (after - before) / 1024, "error": error}


def main() -> None:
    """Measure every way in float32 and bf16 autocast, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.bf16, options.threads)))
        return
    lines = []
    for bf16 in (False, True):
        found = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--threads", str(options.threads)]
            run = subprocess.run(
                [*command, *(["--bf16"] if bf16 else [])],
                capture_output=True,
                text=True,
                check=True,
            )
            found[way] = json.loads(run.stdout)
        for way, values in found.items():
            ratio = values["seconds"] / found["whole logits"]["seconds"]
            lines.append(
                f"| {'bf16 autocast' if bf16 else 'fp32'} | {way} | {values['seconds']:.2f} | "
                f"{ratio:.2f} | {values['mebibytes']:.0f} | {values['error']:.1e} |"
            )
            print(lines[-1], flush=True)
    tokens, vocabulary, dim = SHAPE
    RESULT.write_text(
        f"""# Cross-entropy without full logits

{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {options.threads} thread, torch \
{torch.__version__}. {tokens:,} tokens, {vocabulary:,} words, {dim} dimensions, float32 weights; \
forward and backward, processor time, the best of {REPEATS}. The error is that of the output \
embedding's gradient \
against float64 at {SMALL[0]:,} x {SMALL[1]:,} x {SMALL[2]}. `torch chunked` is \
`F.linear_cross_entropy` with its default options.

| type | way | seconds | of whole | peak MiB above its inputs | gradient error |
|---|---|---:|---:|---:|---:|
"""
        + "\n".join(lines)
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
