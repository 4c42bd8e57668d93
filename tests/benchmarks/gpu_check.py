"""Check and measure what needs a GPU, one part at a time: `make gpu-check PART=training`.

Each part takes 8 minutes at most on one H100 or H200 and writes
`tests/benchmarks/results/<date>-<machine>-<part>.json`. It needs Python with torch, triton,
transformers, accelerate, numpy and safetensors, and pytest for the tests; of longred's other
requirements none. `--tiny` runs the same code on a CPU in a minute.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
Command = list[str]


def gpu_tests() -> list[str]:
    """Return the files of tests that need a GPU; collecting others would need other packages."""
    found = [
        path
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if re.search(r"mark\.gpu\b", path.read_text(encoding="utf-8"))
        and "import longred.cli" not in path.read_text(encoding="utf-8")
    ]
    return [str(path.relative_to(ROOT)) for path in found]


def run(command: Command, log: list[str]) -> int:
    """Run a Python program, showing what it prints and keeping it."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.write(line)
        log.append(line.rstrip())
    return process.wait()


def run_tests(tiny: bool, folder: Path, log: list[str]) -> dict[str, Any]:
    """Run the tests that need a GPU; on a CPU they say that they are skipped."""
    report = folder / "tests.xml"
    command = ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    code = run([*command, *gpu_tests()], log)
    suite = ElementTree.parse(report).getroot().find("testsuite")  # noqa: S314 - as above
    assert suite is not None
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    if not tiny and counts["tests"] == counts["skipped"]:
        log.append("every test was skipped: no GPU was found")
        code = code or 1
    return {"exit_code": code, **counts}


def benchmark(*programs: Command) -> Callable[[bool, Path, list[str]], dict[str, Any]]:
    """Return a part that runs benchmarks, each of which writes a JSON file."""

    def part(tiny: bool, folder: Path, log: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {"exit_code": 0}
        for number, program in enumerate(programs):
            output = folder / f"{number}.json"
            code = run([*program, "--output", str(output)], log)
            found["exit_code"] = found["exit_code"] or code
            if output.is_file():
                found[" ".join(program[1:])] = json.loads(output.read_text(encoding="utf-8"))
        return found

    return part


def _at(name: str, *arguments: str) -> Command:
    return [str(HERE / name), *arguments]


# Ours alone first: the larger comparison may use up the minutes.
PARTS = {
    "tests": (run_tests, run_tests),
    "training": (
        benchmark(
            _at("training.py", "gpu-32k", "--steps", "4"),
            _at("training.py", "gpu-128k", "--steps", "2"),
        ),
        benchmark(_at("training.py", "tiny", "--steps", "2")),
    ),
    "profiling": (
        benchmark(_at("profiling.py", "gpu")),
        benchmark(_at("profiling.py", "tiny")),
    ),
    "generation": (
        benchmark(_at("generation.py", "gpu")),
        benchmark(_at("generation.py", "tiny")),
    ),
}
"""What each part runs: on a GPU, and with `--tiny`."""


def main() -> int:
    """Run one part, write its JSON, and print where that is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--tiny", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        sys.stderr.write("torch finds no GPU here; --tiny runs the same code on the CPU\n")
        return 3
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    started, log = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        whole, small = PARTS[arguments.part]
        chosen = small if arguments.tiny else whole
        found = chosen(arguments.tiny, Path(folder), log)
    result = {
        "date": date.today().isoformat(),
        "machine": machine,
        "part": arguments.part,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started, 1),
        **found,
        "output": log[-60:],
    }
    name = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    tiny = "-tiny" if arguments.tiny else ""
    path = arguments.results / f"{result['date']}-{name}-{arguments.part}{tiny}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{arguments.part}: exit code {result['exit_code']}, {result['seconds']} s, {path}")
    return int(result["exit_code"])


if __name__ == "__main__":
    sys.exit(main())
