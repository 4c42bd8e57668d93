"""Measure all that needs a GPU in ten minutes: `make gpu-check`.

    python tests/benchmarks/gpu_check.py --results DIR --deadline 540
    python tests/benchmarks/gpu_check.py --resume FILE   # what is in the file is not measured again
    python tests/benchmarks/gpu_check.py --tiny          # small shapes, on the CPU

Items are measured in order of worth (`--list`), each in a process of its own. After each
measurement a JSON line is on disk, in `<device>-<model>-<length>.jsonl` of the results; a killed
run has lost one item at most. Where tests/benchmarks/results has figures of the same device, what
is more than 15 % slower or needs 2 % more memory is named at the end.

Needs Python with torch, triton, transformers, accelerate, numpy and safetensors, and pytest for the
tests. Exit codes: 0 · 1 an item failed or is worse than before · 2 usage · 3 no GPU here.
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
    """Measure, write, compare; return the exit code."""
    arguments = _arguments(items)
    if arguments.list:
        for item in items:
            print(f"{item.name:>14}  {item.tiny_seconds if arguments.tiny else item.seconds:>4} s")
        return 0
    earlier = read_lines(arguments.resume) if arguments.resume else []
    _prepare_environment()
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
    parser.add_argument("--resume", type=Path, metavar="FILE", help="results of an earlier run")
    parser.add_argument("--only", default="", metavar="ITEM,…")
    parser.add_argument("--list", action="store_true", help="items, and about how long they take")
    parser.add_argument("--tiny", action="store_true", help="small shapes, on the CPU")
    parser.add_argument(
        "--baselines", type=Path, default=HERE / "results", metavar="DIR", help="to compare with"
    )
    found = parser.parse_args()
    found.only = [name for name in found.only.split(",") if name]
    unknown = set(found.only) - {item.name for item in items}
    if unknown:
        parser.error(f"--only: {min(unknown)} is not one of {', '.join(i.name for i in items)}")
    if found.resume and not found.resume.is_file():
        parser.error(f"--resume: {found.resume} is no file")
    return found


def _prepare_environment() -> None:
    """Set what every process inherits."""
    paths = [str(HERE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # Looking for GPUs must not start CUDA in the process that the others are forked from.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _path(arguments: argparse.Namespace, stem: str) -> Path:
    resume: Path | None = arguments.resume
    if resume and resume.resolve().parent == arguments.results.resolve():
        return resume
    return new_path(arguments.results, stem, date.today().isoformat())


def _is_worse(folder: Path, stem: str, results: Results) -> bool:
    """Compare with the newest other results of the same device, model and length."""
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
