"""Measure how fast RULER samples are generated, compared with lm-eval's own generators.

    pip install --target /tmp/lm-eval-ruler nltk
    python tests/benchmarks/ruler.py --packages /tmp/lm-eval-ruler \
        --output tests/benchmarks/results/ruler

Each task makes 500 samples of up to 4,096 tokens with the same tokenizer (byte-level BPE of 8,192
tokens, trained on Python's documentation), in one process on one core; times are CPU seconds.
lm-eval's generators need `wonderwords` (a dependency of longred) and `nltk` (not a dependency: pass
its folder with `--packages`). As shipped, they make six tasks offline. `--essays` adds the five
tasks that hide needles in essays: lm-eval gets the same local text as longred, and a regular
expression replaces the sentence model that nltk would download. Question answering is left out,
since lm-eval cannot make it offline.

Load time is measured separately: Python packages, the tokenizer and, for lm-eval's needle tasks, a
list of six million keys that every run of such a task rebuilds. longred counts the tokens of each
prompt exactly as it is returned; lm-eval leaves out the answer prefix. After timing, every prompt
of both sides is encoded once more as a whole, with its answer prefix and the tokens to generate, to
report how full prompts are and how many are too long.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

LENGTH, SEED = 4096, 0
OFFLINE = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")
ESSAYS = ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
SIDES = ("longred", "lm-eval")
BUDGETS = {"vt": 30, "cwe": 120, "fwe": 50}
SEPARATORS = {"cwe": "\n\n"}

Rows = list[dict[str, Any]]


def train_tokenizer(folder: Path) -> None:
    """Train and save the tokenizer that both sides use."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from longred.evaluation.ruler.materials import library_text

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(library_text(), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def load_ours(folder: Path, task: str) -> Callable[[int], Rows]:
    """Return longred's generator of a task, with all packages and the tokenizer loaded."""
    from transformers import AutoTokenizer

    from longred.evaluation import ruler
    from longred.evaluation.ruler.words import all_words

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if task in ("niah_single_1", "niah_multikey_2", "cwe"):
        all_words()
    return lambda count: ruler.generate(
        task, length=LENGTH, num_samples=count, tokenizer=tokenizer, seed=SEED
    )


def load_theirs(folder: Path, task: str) -> Callable[[int], Rows]:
    """Return lm-eval's generator of a task, with all packages and the tokenizer loaded."""
    if task in ("vt", "cwe", "fwe"):
        return _their_words(folder, task)
    from lm_eval.tasks.ruler import niah_utils, prepare_niah
    from lm_eval.tasks.ruler.common_utils import get_tokenizer

    from longred.evaluation.ruler.materials import library_text

    get_tokenizer(str(folder))
    if task in ESSAYS:
        words = " ".join(library_text()).split()
        niah_utils.get_haystack = lambda type_haystack: words
        ends = re.compile(r"(?<=[.!?])\s+")
        cache: dict[str, list[str]] = {}
        prepare_niah.cached_sent_tokenize = lambda text: cache.setdefault(text, ends.split(text))
    plain = prepare_niah.generate_samples

    def generate(count: int) -> Rows:
        niah_utils.generate_samples = lambda *args, **settings: plain(
            *args, **{**settings, "num_samples": count}
        )
        made = getattr(niah_utils, task)(tokenizer=str(folder), max_seq_lengths=[LENGTH])
        return list(made["test"])

    return generate


def _their_words(folder: Path, task: str) -> Callable[[int], Rows]:
    from lm_eval.tasks.ruler import cwe_utils, fwe_utils, vt_utils
    from lm_eval.tasks.ruler.common_utils import get_tokenizer

    tokenizer = get_tokenizer(str(folder))

    def generate(count: int) -> Rows:
        if task == "cwe":
            return cwe_utils.sys_word_pair_random(count, LENGTH, tokenizer=tokenizer)
        if task == "fwe":
            return fwe_utils.sys_kwext(tokenizer, LENGTH, num_samples=count)
        example = vt_utils.sys_vartrack_w_noise_random(
            tokenizer=tokenizer, num_samples=1, max_seq_length=500, incremental=5
        )[0]
        return vt_utils.sys_vartrack_w_noise_random(
            tokenizer=tokenizer, num_samples=count, max_seq_length=LENGTH, icl_example=example
        )

    return generate


def one(side: str, task: str, folder: Path, count: int) -> dict[str, float]:
    """Measure one side on one task, in this process."""
    start = time.process_time()
    generate = (load_ours if side == "longred" else load_theirs)(folder, task)
    loaded = time.process_time()
    rows = generate(count)
    done = time.process_time()

    from transformers import AutoTokenizer

    from longred.evaluation.counting import count_tokens

    tokenizer = AutoTokenizer.from_pretrained(folder)
    used = []
    for row in rows:
        prefix = row["prefix"] if side == "longred" else row["gen_prefix"]
        gap = " " if side == "longred" else SEPARATORS.get(task, " ")
        prompt = f"{row['input']}{gap}{prefix}"
        used.append(count_tokens(tokenizer, prompt) + BUDGETS.get(task, 128))
    return {
        "load_seconds": round(loaded - start, 2),
        "seconds": round(done - loaded, 3),
        "num_samples": len(rows),
        "fill": round(sum(used) / (LENGTH * len(used)), 4),
        "num_too_long": sum(size > LENGTH for size in used),
    }


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Measure both sides on every task, each in its own process."""
    environment = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "RAYON_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([*sys.path[1:], *arguments.packages]),
    }
    found: dict[str, dict[str, Any]] = {}
    for task in [*OFFLINE, *(ESSAYS if arguments.essays else ())]:
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--task", task]
            command += ["--tokenizer", str(folder), "--samples", str(arguments.samples)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{side} {task}:\n{done.stderr[-3000:]}")
            found.setdefault(task, {})[side] = json.loads(done.stdout.splitlines()[-1])
        sides = found[task]
        ours, theirs = sides["longred"], sides["lm-eval"]
        sides["ratio"] = round(theirs["seconds"] / ours["seconds"], 2)
        whole = [side["load_seconds"] + side["seconds"] for side in (theirs, ours)]
        sides["ratio with loading"] = round(whole[0] / whole[1], 2)
        print(task, json.dumps(sides), flush=True)
    return found


def total(found: dict[str, dict[str, Any]], tasks: Sequence[str]) -> dict[str, float]:
    """Return the seconds and ratios of several tasks as if in one process: packages load once."""
    result: dict[str, float] = {}
    for side in SIDES:
        result[f"{side} seconds"] = round(sum(found[task][side]["seconds"] for task in tasks), 2)
        load = max(found[task][side]["load_seconds"] for task in tasks)
        result[f"{side} seconds with loading"] = round(result[f"{side} seconds"] + load, 2)
    for suffix in ("seconds", "seconds with loading"):
        result[f"ratio of {suffix}"] = round(
            result[f"lm-eval {suffix}"] / result[f"longred {suffix}"], 2
        )
    return result


def table(report: dict[str, Any]) -> str:
    """Return the results as a Markdown page."""
    lines = [
        f"# RULER generation, {report['num_samples']} samples a task at {LENGTH:,} tokens",
        "",
        f"{report['date']}, {report['machine']}; CPU seconds on one core; {report['versions']}.",
        "",
        "| task | load, s | generate, s | lm-eval load, s | generate, s | ratio, all "
        "| ratio, generate | fill | lm-eval fill |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for task, sides in report["tasks"].items():
        ours, theirs = sides["longred"], sides["lm-eval"]
        lines.append(
            f"| {task} | {ours['load_seconds']:.1f} | {ours['seconds']:.2f} "
            f"| {theirs['load_seconds']:.1f} | {theirs['seconds']:.2f} "
            f"| {sides['ratio with loading']:.1f} | {sides['ratio']:.1f} "
            f"| {ours['fill']:.1%} | {theirs['fill']:.1%} |"
        )
    lines += ["", "In one process, packages loaded once:", ""]
    lines += ["| tasks | generate, s | lm-eval, s | ratio | with loading, s | ratio |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name, sums in report["totals"].items():
        lines.append(
            f"| {name} | {sums['longred seconds']:.1f} | {sums['lm-eval seconds']:.1f} "
            f"| {sums['ratio of seconds']:.1f} | {sums['longred seconds with loading']:.1f} / "
            f"{sums['lm-eval seconds with loading']:.1f} "
            f"| {sums['ratio of seconds with loading']:.1f} |"
        )
    counts = {
        side: sum(s[side]["num_too_long"] for s in report["tasks"].values()) for side in SIDES
    }
    lines += ["", f"Prompts that are too long: {counts}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all tasks, print the page and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", action="append", default=[], help="folder containing nltk")
    parser.add_argument("--essays", action="store_true", help="also measure the five essay tasks")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument(
        "--output", type=Path, help="output path without suffix; writes .json and .md"
    )
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        result = one(arguments.side, arguments.task, arguments.tokenizer, arguments.samples)
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(Path(folder))
        found = measure(arguments, Path(folder))
    essays = arguments.essays
    report = {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
        "versions": ", ".join(
            f"{name} {version(name)}" for name in ("lm_eval", "tokenizers", "transformers")
        ),
        "num_samples": arguments.samples,
        "tasks": found,
        "totals": {
            "six that lm-eval makes offline": total(found, OFFLINE),
            "the three of needles in noise or needles": total(found, OFFLINE[:3]),
            **({"five with essays, given local text": total(found, ESSAYS)} if essays else {}),
        },
    }
    print(table(report))
    if arguments.output:
        arguments.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
        arguments.output.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
