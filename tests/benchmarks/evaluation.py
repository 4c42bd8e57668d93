"""Compare the evaluation with lm-eval's own: scores, time, task scan, and memory at 32K tokens.

    python tests/benchmarks/evaluation.py --output tests/benchmarks/results/evaluation

One run measures three parts, in fresh processes:

- Demo suite: longred and `lm_eval.simple_evaluate`, with its own model class, tasks, metrics and
  filters, alternate in asking the demo model the same frozen questions. Scores must be equal task
  by task; CPU seconds are compared.
- Task scan: the CPU seconds to find and load one packaged task, in one process per side.
- Memory: a small model with a vocabulary of 32K tokens generates an answer to a RULER prompt of 32K
  tokens. Every tensor that an operation creates is inspected; the largest is reported beside the
  size of full logits.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BATCH_SIZE, ROUNDS = 8, 3
LENGTH, VOCABULARY = 32768, 32768


def freeze_demo_suite(num_samples: int) -> tuple[Path, Path]:
    """Return the folders of the demo model and of its frozen questions."""
    from longred import stages
    from longred.config import ModelConfig
    from longred.evaluation.standalone import evaluation_config, text_config
    from longred.store.artifacts import Store

    store = Store(Path(tempfile.mkdtemp()))
    base = stages.find_model(ModelConfig(path="demo"), store=store)
    data = stages.prepare_data(text_config([base.folder], None, 0), base, store=store)
    config = evaluation_config(
        [base.folder],
        {
            "ruler": {"lengths": [], "num_samples": 1},
            "short": {"suite": "demo", "num_samples": num_samples},
            "device": "cpu",
        },
    )
    return base.folder, stages.freeze_samples(config, base, data, store=store).folder


def their_task(task: Any, samples: list[dict[str, Any]]) -> Any:
    """Return the same questions as an lm-eval task, scored by lm-eval's own metrics."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    config: dict[str, Any] = {
        "task": task.name,
        "custom_dataset": lambda: {"test": datasets.Dataset.from_list(samples)},
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "input",
    }
    if task.metric == "choice":
        return ConfigurableTask(
            config=config
            | {
                "output_type": "multiple_choice",
                "doc_to_choice": "choices",
                "doc_to_target": "answer",
                "target_delimiter": "",
                "metric_list": [{"metric": "acc"}],
            }
        )
    digits = {"name": "number", "filter": [{"function": "regex", "regex_pattern": r"(\d+)"}]}
    digits["filter"].append({"function": "take_first"})
    return ConfigurableTask(
        config=config
        | {
            "output_type": "generate_until",
            "doc_to_target": "{{outputs[0]}}",
            "metric_list": [{"metric": "exact_match"}],
            "filter_list": [digits],
            "generation_kwargs": {
                "until": ["\n"],
                "do_sample": False,
                "max_gen_toks": samples[0]["max_new_tokens"],
            },
        }
    )


def demo_suite(num_samples: int) -> dict[str, Any]:
    """Run the demo suite with longred and lm-eval in turns; compare scores and CPU time."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from longred.evaluation.lm import TransformersLM
    from longred.evaluation.own_tasks import run_own_task
    from longred.evaluation.tasks import read_tasks
    from longred.models.load import load_model, load_tokenizer

    folder, questions = freeze_demo_suite(num_samples)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    # lm-eval's own class pads under a mask.
    padded = load_model(folder, attention="sdpa")
    window = model.config.max_position_embeddings
    tasks = read_tasks(questions)
    samples = {task.name: task.read_samples() for task in tasks}
    manager = TaskManager(include_defaults=False)

    def ours() -> dict[str, float]:
        lm = TransformersLM(model, tokenizer, max_tokens=window)
        found = {t.name: [row["score"] for row in run_own_task(lm, t)] for t in tasks}
        return {task: sum(scores) / len(scores) for task, scores in found.items()}

    def theirs() -> dict[str, float]:
        lm = HFLM(pretrained=padded, tokenizer=tokenizer, batch_size=BATCH_SIZE)
        their_tasks = [their_task(task, samples[task.name]) for task in tasks]
        found = simple_evaluate(
            model=lm, tasks=their_tasks, task_manager=manager, bootstrap_iters=0, log_samples=True
        )["results"]
        keys = {True: "acc,none", False: "exact_match,number"}
        return {t.name: 100.0 * found[t.name][keys[t.metric == "choice"]] for t in tasks}

    sides: dict[str, Callable[[], dict[str, float]]] = {"longred": ours, "lm-eval": theirs}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    scores: dict[str, dict[str, float]] = {}
    for _ in range(ROUNDS + 1):
        for side, run in sides.items():
            start = time.process_time()
            scores[side] = run()
            seconds[side].append(time.process_time() - start)
    # The first round of each side is a warm-up.
    best = {side: min(times[1:]) for side, times in seconds.items()}
    return {
        "num_samples": num_samples,
        "scores": scores,
        "identical": all(
            abs(scores["longred"][t] - s) < 1e-6 for t, s in scores["lm-eval"].items()
        ),
        "seconds": {side: round(value, 3) for side, value in best.items()},
        "ratio": round(best["lm-eval"] / best["longred"], 2),
    }


def scan(side: str) -> dict[str, float]:
    """Measure finding and loading the description of one packaged task, in this process."""
    import lm_eval.tasks

    if side == "longred":
        from longred.evaluation.lm_eval_catalog import find_leaves, task_file

        start = time.process_time()
        found = find_leaves("gsm8k")
        assert list(found) == ["gsm8k"], found
        assert task_file("gsm8k").is_file()
    else:
        start = time.process_time()
        assert "gsm8k" in lm_eval.tasks.TaskManager().all_tasks
    return {"seconds": round(time.process_time() - start, 2)}


class Largest(TorchDispatchMode):
    """Record the largest tensor and the most rows of logits that any operation creates.

    Tensors that share storage with weights are ignored.
    """

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.weights = weights
        self.num_bytes, self.shape, self.name = 0, (), ""
        self.num_vocabulary_rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and record its output tensors."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            if tensor.untyped_storage().data_ptr() in self.weights:
                continue
            num_bytes = tensor.numel() * tensor.element_size()
            if num_bytes > self.num_bytes:
                self.num_bytes, self.shape, self.name = num_bytes, tuple(tensor.shape), str(func)
            if tensor.ndim >= 2 and tensor.shape[-1] == VOCABULARY + 1:
                rows = tensor.numel() // tensor.shape[-1]
                self.num_vocabulary_rows = max(self.num_vocabulary_rows, rows)
        return result


def memory() -> dict[str, Any]:
    """Measure memory while answering one RULER prompt of 32K tokens, in this process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from longred.evaluation import ruler
    from longred.evaluation.lm import TransformersLM
    from longred.evaluation.own_tasks import run_own_task
    from longred.evaluation.tasks import Task, write_lines
    from longred.models.load import load_model, load_tokenizer
    from longred.store.artifacts import sha256_file

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        config = LlamaConfig(
            # One more than the length, so that no other dimension is mistaken for the vocabulary.
            vocab_size=VOCABULARY + 1,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=LENGTH,
            eos_token_id=1,
            pad_token_id=1,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        demo = Path(__file__).parents[2] / "longred" / "demo" / "model"
        tokenizer = load_tokenizer(demo)
        samples = ruler.generate(
            "niah_single_1", length=LENGTH, num_samples=1, tokenizer=tokenizer, seed=0
        )
        samples[0]["max_new_tokens"] = 8
        path = folder / "samples.jsonl"
        write_lines(path, samples)
        task = Task(
            kind="ruler",
            name="niah_single_1",
            length=LENGTH,
            metric="recall",
            chance=0.0,
            num_samples=1,
            max_tokens=LENGTH,
            path=path,
            sha256=sha256_file(path),
        )
        model = load_model(folder)
        lm = TransformersLM(model, tokenizer, max_tokens=LENGTH)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        with Largest(weights) as seen:
            (answer,) = run_own_task(lm, task)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "prompt_tokens": samples[0]["num_tokens"],
        "output_tokens": answer["output_tokens"],
        "largest_tensor": {
            "mib": round(seen.num_bytes / 2**20, 1),
            "shape": list(seen.shape),
            "made_by": seen.name,
        },
        "most_rows_of_logits": seen.num_vocabulary_rows,
        "full_logits_mib": round(samples[0]["num_tokens"] * (VOCABULARY + 1) * 4 / 2**20),
        "peak_growth_mib": round((after - before) / 1024),
    }


def fresh(*arguments: str) -> dict[str, Any]:
    """Run one part of this script in a fresh process; return its measurements."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path[1:])},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def page(report: dict[str, Any]) -> str:
    """Return the results as a Markdown page."""
    suite, scans, most = report["suite"], report["scan"], report["memory"]
    lines = [
        "# Evaluation against lm-eval's own",
        "",
        f"{report['date']}, {report['machine']}; CPU seconds on one core; {report['versions']}.",
        "",
        f"Demo suite, demo model, {suite['num_samples']} questions a task: scores "
        f"{'identical' if suite['identical'] else 'DIFFERENT'}; longred "
        f"{suite['seconds']['longred']:.2f} s, `simple_evaluate` {suite['seconds']['lm-eval']:.2f} "
        f"s (the best of {ROUNDS} rounds in turns, task scan excluded): {suite['ratio']:.2f} times "
        "as fast.",
        "",
        "| task | longred | lm-eval |",
        "|---|---:|---:|",
        *(
            f"| {task} | {score:.2f} | {suite['scores']['lm-eval'][task]:.2f} |"
            for task, score in suite["scores"]["longred"].items()
        ),
        "",
        f"Task scan: longred {scans['longred']['seconds']:.2f} s, lm-eval "
        f"{scans['lm-eval']['seconds']:.1f} s.",
        "",
        f"A RULER prompt of {most['prompt_tokens']:,} tokens, {most['output_tokens']} generated, "
        f"vocabulary of {VOCABULARY + 1:,}: at most {most['most_rows_of_logits']} row of logits "
        f"at a time. The largest tensor of all takes {most['largest_tensor']['mib']} MiB "
        f"({most['largest_tensor']['shape']}); full logits would take "
        f"{most['full_logits_mib']:,} MiB. The peak of resident memory grew by "
        f"{most['peak_growth_mib']:,} MiB.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all parts, print the page and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50, help="questions per short task")
    parser.add_argument(
        "--output", type=Path, help="output path without suffix; writes .json and .md"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "suite": lambda: demo_suite(arguments.samples),
        "scan-longred": lambda: scan("longred"),
        "scan-lm-eval": lambda: scan("lm-eval"),
        "memory": memory,
    }
    if arguments.part:
        print(json.dumps(parts[arguments.part]()))
        return
    names = ("lm_eval", "torch", "transformers")
    report = {
        "date": str(datetime.now(UTC).date()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in names),
        "suite": fresh("--part", "suite", "--samples", str(arguments.samples)),
        "scan": {side: fresh("--part", f"scan-{side}") for side in ("longred", "lm-eval")},
        "memory": fresh("--part", "memory"),
    }
    print(page(report))
    if arguments.output:
        arguments.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
        arguments.output.with_suffix(".md").write_text(page(report))


if __name__ == "__main__":
    main()
