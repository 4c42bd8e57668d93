"""Show the method on a real model, with one command for one GPU and nine minutes.

    python tests/benchmarks/real_model.py prepare MODEL --output DIR --text FOLDER …
    python tests/benchmarks/real_model.py measure DIR --results OUT --deadline 540

`prepare` runs where longred is installed. It makes token files, frozen samples, configurations and
bfloat16 weights, as parts of limited size with a manifest in DIR.

`measure` verifies and joins the parts and runs on a machine with Python, torch, triton,
transformers, accelerate, numpy and safetensors only, with longred's own trainer and evaluation:
the original, the rescaled model without training, and the students of longred-c, cpt and mix-cpt,
trained on equally many tokens. It measures loss by position, short sets, similarity to the original
and RULER. Items run in order of importance (`--list`), each in its own process; every measurement
is written immediately as a JSON line of `<device>-<model>-<length>.jsonl`, and `--resume` goes on
with such a file. The output ends with a table, which is also in the `.md` beside it. How long items
take was estimated for an H200 at a quarter of the speed of large products, see `real.estimates`;
how many steps the trainings take follows from the deadline and the speed of the first one.

Exit codes: 0 success · 1 an item failed · 2 usage error · 3 no GPU, or parts missing or changed.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [path for path in (str(HERE), str(ROOT)) if path not in sys.path]

from gpu.lines import Results, finished, new_path, read_lines, stem_of  # noqa: E402 - path above
from gpu.lines import table as all_figures  # noqa: E402
from gpu.run import Runner, run  # noqa: E402
from gpu_check import prepare_environment  # noqa: E402
from real.parts import PartsError, join, read_manifest  # noqa: E402

RULER = ("niah_single_1", "niah_single_2", "niah_multikey_1")
"""Tasks in which SmolLM2-135M-Instruct has 20 % or more at its own window."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two commands; return the exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        return int(chosen.command(chosen))
    except PartsError as error:
        sys.stderr.write(f"{error}\n")
        return 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    shows = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    _add_prepare(commands.add_parser("prepare", help="make the inputs as parts", **shows))
    _add_measure(commands.add_parser("measure", help="train and measure on this machine", **shows))
    return parser


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help="what `model.path` of a recipe may be")
    add("--output", type=Path, required=True, metavar="DIR", help="receives the parts")
    add("--text", required=True, nargs="+", metavar="FOLDER", help="as data= of `longred run`")
    add("--name", help="the model's name in results; that of its folder by default")
    add("--original-window", type=int, help="tokens; the model's own window by default")
    add("--target-window", type=int, default=32768)
    add("--lengths", type=int, nargs="+", help="original window, doubled up to the target window")
    add("--short-length", type=int, default=1024)
    add("--rope-theta", type=float, help="of the student; longred's proposal by default")
    add("--num-steps", type=int, default=100, help="most steps of each training")
    add("--step-tokens", type=int, default=262144)
    add("--learning-rate", type=float, default=1e-4)
    add("--num-distill-layers", type=int, default=6)
    add("--loss-rows", type=int, default=6, help="rows of the longest length; as many tokens each")
    add("--similarity-tokens", type=int, default=32768)
    add("--ruler", nargs="+", default=list(RULER), metavar="TASK")
    add("--samples", type=int, default=24, help="of each RULER task and length")
    add("--first-samples", type=int, default=6, help="of them that are measured before the others")
    add("--haystack", default="library", help="as evaluation.ruler.haystack of a recipe")
    add("--short", nargs="*", default=["demo"], metavar="SUITE", help="names or files of suites")
    add("--short-samples", type=int, default=200, help="most samples of a short task")
    add("--short-data", metavar="FOLDER", help="folder of the files that suites name in {folder}")
    add("--chat-template", choices=("auto", "true", "false"), default="false")
    add("--seed", type=int, default=0)
    add("--part-bytes", type=int, default=50_000_000, help="size of a part, at most 60,000,000")
    parser.set_defaults(command=_prepare)


def _add_measure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="what `prepare` wrote")
    add("--results", type=Path, default=HERE / "results", metavar="DIR")
    add("--deadline", type=float, default=540.0, metavar="SECONDS")
    add("--resume", type=Path, metavar="FILE", help="reuse the finished items of this file")
    add("--num-steps", type=int, default=0, help="of each training; 0 for as many as fit")
    add("--only", default="", metavar="ITEM,…")
    add("--list", action="store_true", help="list the items and their estimated seconds")
    add("--tiny", action="store_true", help="the same code on the CPU, for a tiny model")
    parser.set_defaults(command=_measure)


def _prepare(chosen: argparse.Namespace) -> int:
    from real.prepare import prepare

    from longred.errors import LongredError

    try:
        manifest = prepare(chosen)
    except LongredError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    parts = sorted(chosen.output.glob("part-*"))
    size = sum(path.stat().st_size for path in parts)
    print(f"{manifest}: {len(parts)} parts, {size / 1e6:,.1f} MB; all of them must travel")
    return 0


def _measure(chosen: argparse.Namespace) -> int:
    read_manifest(chosen.folder)  # Refuses a wrong folder before slow imports.
    from real.inputs import Inputs
    from real.items import ORDER, items
    from real.summary import table

    names = [work.name for work in ORDER]
    only = [name for name in chosen.only.split(",") if name]
    for problem in (
        *(f"--only: {name} is not one of {', '.join(names)}" for name in only if name not in names),
        *([f"--resume: {chosen.resume} is not a file"] if _is_missing(chosen.resume) else []),
    ):
        sys.stderr.write(f"{problem}\n")
        return 2
    inputs = Inputs(chosen.folder.resolve())
    # The deadline counts from here; joining is part of it.
    runner = Runner(tiny=chosen.tiny, deadline=chosen.deadline)
    if join(inputs.folder, inputs.joined):
        # Students of other inputs.
        shutil.rmtree(inputs.training(""), ignore_errors=True)
    num_steps = chosen.num_steps
    if chosen.tiny and not num_steps:
        # Estimates for a GPU say nothing about this machine.
        num_steps = inputs.values["num_steps"]
    settings = {"deadline": chosen.deadline, "num_steps": num_steps}
    if chosen.list:
        for item in items(inputs, [], **settings):
            print(f"{item.name:>18}  {item.tiny_seconds if chosen.tiny else item.seconds:>6} s")
        return 0
    # Prompts are tokenised on all cores: on one, that takes longer than reading them on a GPU.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    prepare_environment()
    machine = runner.find_machine()
    if machine["problem"]:
        sys.stderr.write(f"{machine['problem']}; --tiny runs the same code on the CPU\n")
        return 3
    results, done = _results(chosen, inputs, machine["device"])
    print(f"{machine['device']}: {results.path}", flush=True)
    wanted = (
        item for item in items(inputs, results.lines, **settings) if not only or item.name in only
    )
    all_well = run(runner, wanted, results, done)
    print(all_figures(results.lines))
    found = table(results.lines)
    print(f"\n{found}")
    title = f"# {inputs.values['model']} on {machine['device']}"
    text = f"{title}, {date.today().isoformat()}\n\n```\n{found}\n```\n"
    results.path.with_suffix(".md").write_text(text, encoding="utf-8")
    return int(not all_well)


def _is_missing(path: Path | None) -> bool:
    return path is not None and not path.is_file()


def _results(chosen: argparse.Namespace, inputs: Any, device: str) -> tuple[Results, set[str]]:
    """Open the results file; return it and the names of the items that need not run again."""
    from real.inputs import METHODS

    earlier = read_lines(chosen.resume) if chosen.resume else []
    path = chosen.resume
    if path is None or path.resolve().parent != chosen.results.resolve():
        window = inputs.values["target_window"]
        length = f"{window // 1024}k" if window % 1024 == 0 else str(window)
        stem = stem_of(device, inputs.values["model"], length)
        path = new_path(chosen.results, stem, date.today().isoformat())
    results = Results(path)
    if path != chosen.resume:
        for line in earlier:
            results.append(line)
    # A student that is no longer here is trained again.
    lost = {f"train-{method}" for method in METHODS if not inputs.place(method).is_dir()}
    return results, finished(earlier) - lost


if __name__ == "__main__":
    sys.exit(main())
