"""Measure everything that needs a GPU in ten minutes: `make gpu-check`.

    python tests/benchmarks/gpu_check.py --results DIR --deadline 540
    python tests/benchmarks/gpu_check.py --resume FILE   # reuse the finished items of FILE
    python tests/benchmarks/gpu_check.py --tiny          # small shapes, on the CPU

Items run in order of importance (`--list`), each in its own process. Every measurement is written
immediately as a JSON line of `<device>-<model>-<length>.jsonl` in the results folder, so a killed
run loses at most one item. If tests/benchmarks/results has figures of the same device, model and
length, changes of more than 15 % in speed or 2 % in memory are listed at the end.

Needs Python with torch, triton, transformers, accelerate, numpy and safetensors, and pytest for the
tests. Exit codes: 0 success · 1 an item failed or got worse · 2 usage error · 3 no GPU found.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [path for path in (str(HERE), str(ROOT)) if path not in sys.path]

from gpu.items import ITEMS, Item  # noqa: E402 - found by the path above
from gpu.lines import (  # noqa: E402
    Results,
    by_device,
    compare,
    finished,
    new_path,
    read_lines,
    stem_of,
    table,
)
from gpu.run import Runner, run  # noqa: E402


def main(items: Sequence[Item] = ITEMS) -> int:
    """Measure the items, write and compare the results; return the exit code."""
    arguments = _arguments(items)
    if arguments.list:
        for item in items:
            print(f"{item.name:>14}  {item.tiny_seconds if arguments.tiny else item.seconds:>4} s")
        return 0
    earlier = read_lines(arguments.resume) if arguments.resume else []
    prepare_environment()
    runner = Runner(tiny=arguments.tiny, deadline=arguments.deadline)
    machine = runner.find_machine()
    if machine["problem"]:
        sys.stderr.write(f"{machine['problem']}; --tiny runs the same code on the CPU\n")
        return 3
    stem = stem_of(machine["device"], machine["model"], machine["length"])
    path = _path(arguments, stem)
    results = Results(path)
    if path != arguments.resume:
        for line in earlier:
            results.append(line)
    print(f"{machine['device']}: {path}", flush=True)
    wanted = [item for item in items if not arguments.only or item.name in arguments.only]
    all_well = run(runner, wanted, results, finished(earlier))
    print(table(results.lines))
    return int(_is_worse(arguments.baselines, stem, results) or not all_well)


def _arguments(items: Sequence[Item]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="DIR")
    parser.add_argument("--deadline", type=float, default=540.0, metavar="SECONDS")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="results file of an earlier run; its finished items are reused",
    )
    parser.add_argument("--only", default="", metavar="ITEM,…")
    parser.add_argument(
        "--list", action="store_true", help="list the items and their estimated seconds"
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes, on the CPU")
    parser.add_argument(
        "--baselines",
        type=Path,
        default=HERE / "results",
        metavar="DIR",
        help="folder of results to compare with",
    )
    found = parser.parse_args()
    found.only = [name for name in found.only.split(",") if name]
    unknown = set(found.only) - {item.name for item in items}
    if unknown:
        parser.error(f"--only: {min(unknown)} is not one of {', '.join(i.name for i in items)}")
    if found.resume and not found.resume.is_file():
        parser.error(f"--resume: {found.resume} is not a file")
    return found


def prepare_environment() -> None:
    """Set the environment variables that every process inherits."""
    paths = [str(HERE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # Looking for GPUs must not initialise CUDA in the process that the others are forked from.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _path(arguments: argparse.Namespace, stem: str) -> Path:
    resume: Path | None = arguments.resume
    if resume and resume.resolve().parent == arguments.results.resolve():
        return resume
    return new_path(arguments.results, stem, date.today().isoformat())


def _is_worse(folder: Path, stem: str, results: Results) -> bool:
    """Compare with the newest other results of the same device, model and length.

    Print the differences; return whether any figure is worse.
    """
    own = results.path.resolve()
    others = [path for path in by_device(folder).get(stem, []) if path.resolve() != own]
    if not others:
        return False
    differences = compare(read_lines(others[-1]), results.lines)
    print(f"compared with {others[-1].name}: {len(differences)} figures differ")
    for difference in differences:
        print(f"  {difference}")
    return any(difference.is_worse for difference in differences)


if __name__ == "__main__":
    sys.exit(main())
