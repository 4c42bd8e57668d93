"""Compare longred with plain transformers loops on a real model: time and peak memory in one run.

    python tests/benchmarks/plain_loops.py MODEL --output tests/benchmarks/results/plain-loops
    python tests/benchmarks/plain_loops.py demo --tiny

MODEL is a folder, a `.gguf` file or `demo`. Each side of each part runs in its own process:

- profiling: attention KL and hidden similarity of the model and its extension on rows of 1,024
  tokens; plainly, both models return all attention maps and hidden states.
- perplexity: loss on rows of the model's window; plainly, from the logits of all tokens.
- generation: answers to a batch of prompts of half the window; plainly, `generate` for one prompt
  after another.

Both sides must find the same: KL and loss up to rounding, answers token by token. Training is
compared by `training.py smollm2`, with random weights of the same shape.
"""

import argparse
import copy
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from longred.evaluation.generation import Generator, Sampling
from longred.evaluation.perplexity import token_losses
from longred.evaluation.runner import Runner
from longred.models.extension import extend_config
from longred.models.load import load_model, load_tokenizer, resolve_model
from longred.profiling.drift import profile_drift

Work = Callable[[], list[Any]]
"""What is timed; models are loaded and text is tokenised before."""
TEXT = Path(argparse.__file__).parent
"""The standard library, whose modules in the order of their names are the text."""


class Sizes:
    """What is measured: rows and lengths by part; small ones with `--tiny`."""

    def __init__(self, window: int, *, tiny: bool) -> None:
        self.profiled = (2, 64) if tiny else (4, 1024)
        self.scored = (1, window) if tiny else (2, window)
        self.prompts = (2, window // 2) if tiny else (4, window // 2)
        self.new_tokens = 4 if tiny else 32


def text_rows(tokenizer: Any, rows: int, length: int) -> Tensor:
    """Return the first tokens of the standard library as rows."""
    ids: list[int] = []
    for path in sorted(TEXT.glob("*.py")):
        if len(ids) >= rows * length:
            break
        ids += tokenizer(path.read_text("utf-8"), add_special_tokens=False, verbose=False).input_ids
    return torch.tensor(ids[: rows * length]).view(rows, length)


def extended(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model with RoPE rescaled to twice its window."""
    window = model.config.max_position_embeddings
    config = extend_config(
        model.config, method="abf", original_window=window, target_window=2 * window
    )
    other: Any = type(model)(copy.deepcopy(config)).to(model.dtype).eval()
    other.load_state_dict(model.state_dict())
    return other


def profile_ours(folder: Path, sizes: Sizes) -> Work:
    teacher = load_model(folder)
    student = extended(teacher)
    student.config._attn_implementation = teacher.config._attn_implementation
    rows = text_rows(load_tokenizer(folder), *sizes.profiled)
    return lambda: profile_drift(teacher, student, rows, batch_rows=4).layer_scores("attention_kl")


def profile_plainly(folder: Path, sizes: Sizes) -> Work:
    teacher = load_model(folder, attention="eager")
    student = extended(teacher)
    student.config._attn_implementation = "eager"
    rows = text_rows(load_tokenizer(folder), *sizes.profiled)

    @torch.no_grad()
    def work() -> list[float]:
        asked = {"output_attentions": True, "output_hidden_states": True, "use_cache": False}
        first, second = (model(rows, **asked) for model in (teacher, student))
        kl = []
        for t, s in zip(first.attentions, second.attentions, strict=True):
            log_t, log_s = (x.clamp_min(torch.finfo(x.dtype).tiny).log() for x in (t, s))
            kl.append(float((t * (log_t - log_s)).sum(-1).mean()))
        for t, s in zip(first.hidden_states, second.hidden_states, strict=True):
            F.cosine_similarity(t, s, dim=-1).mean()
        return kl

    return work


def score_ours(folder: Path, sizes: Sizes) -> Work:
    model = load_model(folder, dtype=torch.bfloat16)
    rows = text_rows(load_tokenizer(folder), *sizes.scored)
    return lambda: [float(token_losses(model, row[None]).mean()) for row in rows]


def score_plainly(folder: Path, sizes: Sizes) -> Work:
    model = load_model(folder, dtype=torch.bfloat16, attention="sdpa")
    rows = text_rows(load_tokenizer(folder), *sizes.scored)

    @torch.no_grad()
    def work() -> list[float]:
        return [
            float(F.cross_entropy(model(row[None]).logits[0, :-1].float(), row[1:])) for row in rows
        ]

    return work


def answer_ours(folder: Path, sizes: Sizes) -> Work:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    engine = Generator(Runner(model), tokenizer)
    prompts = [row.numpy() for row in text_rows(tokenizer, *sizes.prompts)]
    settings = {"max_tokens": sizes.new_tokens, "stop": [], "sampling": Sampling()}
    return lambda: engine.generate(prompts, **settings)


def answer_plainly(folder: Path, sizes: Sizes) -> Work:
    model, tokenizer = load_model(folder, attention="sdpa"), load_tokenizer(folder)
    rows = text_rows(tokenizer, *sizes.prompts)
    settings = {"do_sample": False, "pad_token_id": tokenizer.eos_token_id}

    def work() -> list[list[int]]:
        answers = (
            model.generate(row[None], max_new_tokens=sizes.new_tokens, **settings) for row in rows
        )
        return [answer[0, rows.shape[1] :].tolist() for answer in answers]

    return work


Side = Callable[[Path, Sizes], Work]
PARTS: dict[str, tuple[Side, Side]] = {
    "profiling": (profile_ours, profile_plainly),
    "perplexity": (score_ours, score_plainly),
    "generation": (answer_ours, answer_plainly),
}
TOLERANCE = {"profiling": 2e-3, "perplexity": 5e-3, "generation": 0.0}
"""Largest relative difference of the two sides; perplexity is computed in bfloat16."""


def child(arguments: argparse.Namespace) -> None:
    """Run one side of one part and print its JSON."""
    folder = Path(arguments.model)
    window = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    sizes = Sizes(window, tiny=arguments.tiny)
    work = PARTS[arguments.part][arguments.side](folder, sizes)
    start, processor = time.perf_counter(), time.process_time()
    result = work()
    measured = {
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "result": result,
    }
    print(json.dumps(measured))


def run_side(arguments: argparse.Namespace, folder: Path, part: str, side: int) -> dict[str, Any]:
    command = [sys.executable, __file__, str(folder), "--part", part, "--side", str(side)]
    command += ["--tiny"] if arguments.tiny else []
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def difference(part: str, ours: Any, plain: Any) -> float:
    """Return the largest relative difference of two results; fail if it is more than rounding."""
    if part == "generation":
        ours, plain = (torch.tensor(x, dtype=torch.float64) for x in (ours, plain))
    first, second = (torch.as_tensor(x, dtype=torch.float64) for x in (ours, plain))
    found = float(((first - second).abs() / second.abs().clamp_min(1e-6)).max())
    assert found <= TOLERANCE[part], f"{part}: {ours} and {plain}"
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every part; print a line for each."""
    folder = resolve_model(arguments.model)
    found = {}
    for part in PARTS:
        ours, plain = (run_side(arguments, folder, part, side) for side in (0, 1))
        error = difference(part, ours.pop("result"), plain.pop("result"))
        found[part] = {
            "ours": ours,
            "plain": plain,
            "times_as_fast": plain["seconds"] / ours["seconds"],
            "share_of_memory": ours["peak_bytes"] / plain["peak_bytes"],
            "largest_relative_difference": error,
        }
        print(
            f"{part:>10}  {ours['seconds']:6.1f} s and {ours['peak_bytes'] / 2**30:5.2f} GiB, "
            f"plainly {plain['seconds']:6.1f} s and {plain['peak_bytes'] / 2**30:5.2f} GiB: "
            f"{found[part]['times_as_fast']:.2f} times as fast with "
            f"{found[part]['share_of_memory']:.2f} of the memory; results differ by {error:.0e}",
            flush=True,
        )
    return found


def main() -> None:
    """Measure all parts, print them and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a model's folder, a .gguf file, or demo")
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    parser.add_argument("--output", type=Path, help="path of the JSON result, without its suffix")
    parser.add_argument("--part", choices=PARTS, help="one part; `main` calls it")
    parser.add_argument("--side", type=int, choices=(0, 1), default=0, help="ours or plain")
    arguments = parser.parse_args()
    if arguments.part:
        child(arguments)
        return
    found = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "model": arguments.model if arguments.model == "demo" else Path(arguments.model).name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
        **measure(arguments),
    }
    if arguments.output:
        path = arguments.output.with_suffix(".json")
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
