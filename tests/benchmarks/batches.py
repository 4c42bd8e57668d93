"""Batches of prompts of unequal length: memory and speed, beside transformers' `generate`.

    python tests/benchmarks/batches.py --output tests/benchmarks/results/batches

Both sides answer the same prompts with the same random weights, in turns in one process:

- `unequal`: four prompts of 100, 90, 80 and 70 % of a length, with nothing in common.
  transformers pads them on the left under a mask.
- `needles`: prompts of one length that differ in a few tokens at a random depth, as in RULER's
  single needle.
- `examples`: many short questions after the same worked examples.

Every tensor that an operation creates is inspected: the largest one, and the peak of the tensors
alive. Needs torch and transformers only.
"""

import argparse
import copy
import json
import platform
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig

from longred.attention.function import ATTENTION_NAME, guard, register
from longred.evaluation.generation import Generator, Sampling
from longred.evaluation.runner import Runner

LENGTHS = (1024, 2048, 4096, 8192)
NEW_TOKENS, ROUNDS = 16, 2
NUM_NEEDLES, NEEDLE_LENGTH = 8, 4096
NUM_QUESTIONS, EXAMPLE_TOKENS, QUESTION_TOKENS = 48, 768, 32
BATCH = 8
VOCABULARY = 4096


class NoTokenizer:
    """Stands in for a tokenizer where no answer ends early."""

    eos_token_id = None


class Tensors(TorchDispatchMode):
    """Record the largest tensor that any operation creates, and the peak of those alive."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._alive: dict[int, int] = {}
        self.largest, self.shape, self.peak = 0, (), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and record its output tensors."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._record(tensor)
        return result

    def _record(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._weights:
            return
        if tensor.nbytes > self.largest:
            self.largest, self.shape = tensor.nbytes, tuple(tensor.shape)
        key = id(storage)
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, key, None)
            self.peak = max(self.peak, sum(self._alive.values()))


def make_models() -> tuple[Any, Any]:
    """Return our model and transformers' with the same weights: 5 M parameters, 8:2 heads."""
    register()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=max(LENGTHS) + NEW_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    build: Any = AutoModelForCausalLM.from_config
    ours = build(copy.deepcopy(config), attn_implementation=ATTENTION_NAME).eval()
    theirs = build(copy.deepcopy(config), attn_implementation="sdpa").eval()
    theirs.load_state_dict(ours.state_dict())
    guard(ours)
    return ours, theirs


def ask_ours(model: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Generate with longred."""
    engine = Generator(Runner(model), NoTokenizer())
    arrays = [np.array(prompt) for prompt in prompts]
    return engine.generate(arrays, max_tokens=NEW_TOKENS, stop=[], sampling=Sampling())


@torch.no_grad()
def ask_theirs(model: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Generate with transformers, in batches padded on the left."""
    answers = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        longest = max(map(len, batch))
        pads = [[0] * (longest - len(prompt)) for prompt in batch]
        tokens = torch.tensor([pad + p for pad, p in zip(pads, batch, strict=True)])
        masks = [[0] * len(pad) + [1] * len(p) for pad, p in zip(pads, batch, strict=True)]
        found = model.generate(
            tokens,
            attention_mask=torch.tensor(masks),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        answers += found[:, longest:].tolist()
    return answers


def unequal(rng: np.random.Generator, length: int) -> list[list[int]]:
    """Prompts with nothing in common."""
    return [
        rng.integers(1, VOCABULARY, int(length * share)).tolist() for share in (1, 0.9, 0.8, 0.7)
    ]


def needles(rng: np.random.Generator) -> list[list[int]]:
    """The same text with a few other tokens at a random depth."""
    text = rng.integers(1, VOCABULARY, NEEDLE_LENGTH - 16)
    depths = rng.integers(0, len(text), NUM_NEEDLES)
    return [np.insert(text, depth, rng.integers(1, VOCABULARY, 16)).tolist() for depth in depths]


def examples(rng: np.random.Generator) -> list[list[int]]:
    """Questions after the same examples."""
    shown = rng.integers(1, VOCABULARY, EXAMPLE_TOKENS).tolist()
    return [
        shown + rng.integers(1, VOCABULARY, QUESTION_TOKENS).tolist() for _ in range(NUM_QUESTIONS)
    ]


def compare(models: tuple[Any, Any], prompts: list[list[int]]) -> dict[str, Any]:
    """Answer prompts on both sides in turns: the best of some rounds, then one with a record."""
    sides: dict[str, Callable[[], list[list[int]]]] = {
        "longred": lambda: ask_ours(models[0], prompts),
        "transformers": lambda: ask_theirs(models[1], prompts),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    answers = {}
    for _ in range(ROUNDS):
        for side, ask in sides.items():
            start = time.perf_counter()
            answers[side] = ask()
            seconds[side].append(time.perf_counter() - start)
    found: dict[str, Any] = {"prompt_tokens": sum(map(len, prompts))}
    for (side, ask), model in zip(sides.items(), models, strict=True):
        with Tensors(model) as seen:
            ask()
        found[side] = {
            "seconds": round(min(seconds[side]), 3),
            "tokens_per_second": round(found["prompt_tokens"] / min(seconds[side])),
            "largest_mib": round(seen.largest / 2**20, 1),
            "largest_shape": list(seen.shape),
            "peak_mib": round(seen.peak / 2**20, 1),
        }
    pairs = zip(answers["longred"], answers["transformers"], strict=True)
    found["same_answers"] = sum(ours == theirs for ours, theirs in pairs) / len(prompts)
    return found


def page(report: dict[str, Any]) -> str:
    """Return the results as a Markdown page."""
    lines = [
        "# Batches of prompts of unequal length",
        "",
        f"{report['date']}, {report['machine']}; {report['versions']}. A Llama of 5 M parameters "
        "in float32 with 8 query and 2 key heads, random weights. transformers pads on the left "
        f"under a mask, {BATCH} prompts at a time; both sides generate {NEW_TOKENS} tokens. "
        f"Prompt tokens per second of the whole call, the best of {ROUNDS} rounds in turns. "
        "Largest tensor and peak without weights.",
        "",
        "| prompts | tokens/s | transformers | ratio | largest tensor, MiB | transformers "
        "| peak, MiB | transformers | same answers |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in report["cases"].items():
        ours, theirs = found["longred"], found["transformers"]
        cells = [
            name,
            f"{ours['tokens_per_second']:,}",
            f"{theirs['tokens_per_second']:,}",
            f"{theirs['seconds'] / ours['seconds']:.2f}",
            f"{ours['largest_mib']:,} {ours['largest_shape']}",
            f"{theirs['largest_mib']:,} {theirs['largest_shape']}",
            f"{ours['peak_mib']:,}",
            f"{theirs['peak_mib']:,}",
            f"{100 * found['same_answers']:.0f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all cases, print the page and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, help="output path without suffix; writes .json and .md"
    )
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
    arguments = parser.parse_args()
    models = make_models()
    rng = np.random.default_rng(0)
    cases = {
        f"unequal, up to {length:,}": compare(models, unequal(rng, length))
        for length in arguments.lengths
    }
    cases[f"{NUM_NEEDLES} needles, {NEEDLE_LENGTH:,}"] = compare(models, needles(rng))
    name = f"{NUM_QUESTIONS} questions after {EXAMPLE_TOKENS} tokens of examples"
    cases[name] = compare(models, examples(rng))
    report = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "cases": cases,
    }
    print(page(report))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
        arguments.output.with_suffix(".md").write_text(page(report))


if __name__ == "__main__":
    main()
