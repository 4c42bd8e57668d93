"""Measure the cost of orchestration on a short recipe, with servers running and imports done.

    python tests/benchmarks/orchestration.py --output tests/benchmarks/results/orchestration

- The full pipeline as a Prefect flow with every stage skipped: seconds.
- The full pipeline as a flow, compared with the same library calls without Prefect (`library`
  below). Each run has its own store; the order is library, flow, flow, library, after one warm-up
  run of each. Reports wall seconds, their ratio and the seconds of each stage.
- `longred --help`: seconds, the best of five.

Both sides record the run and send it to MLflow in the store's own database.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from longred import stages  # noqa: E402
from longred.progress import Progress  # noqa: E402
from longred.runs.record import load_config, load_run  # noqa: E402
from longred.runs.session import open_run  # noqa: E402
from longred.services import servers as services  # noqa: E402
from longred.store.artifacts import Artifact, Store  # noqa: E402

RECIPE = [
    "data.num_tokens=65536",
    "data.num_held_out_tokens=4096",
    "profiling.num_tokens=1024",
    "training.num_threads=1",
    "training.step_tokens=2048",
    "training.micro_batch_tokens=2048",
    "training.num_steps=20",
    "training.baselines=[]",
    "evaluation.ruler.lengths=[256]",
    "evaluation.ruler.num_samples=4",
    "evaluation.short.num_samples=20",
    "evaluation.similarity_tokens=1024",
    "report.min_points_above_chance=0",
]


def library(root: Path, overrides: Sequence[str]) -> str:
    """Run the pipeline by the library calls of the flow's tasks; return the run's id."""
    config = load_config("demo", [f"store.path={root}", *overrides])
    with open_run(config, "demo", overrides) as run:

        def make(name: str, stage: Callable[..., Artifact], *inputs: Any, **more: Any) -> Artifact:
            def call(store: Store, progress: Progress) -> Artifact:
                shown = {"on_progress": progress} if more.pop("shows", False) else {}
                return stage(*inputs, store=store, **shown)

            return run.make(name, call)

        base = make("model", stages.find_model, config.model, config.selection)
        extended = make("extension", stages.extend_model, config.extension, base)
        data = make("data", stages.prepare_data, config.data, base, shows=True)
        samples = make("evaluation/samples", stages.freeze_samples, config.evaluation, base, data)
        inputs = (config.profiling, base, extended, data)
        profile = make("profiling", stages.profile_attention, *inputs, shows=True)
        layers = make("selection", stages.select_layers, config.selection, profile)
        students = {
            method: make(
                f"training/{method}",
                stages.train_student,
                *(config.training, method, base, extended, data, layers),
                shows=True,
            )
            for method in config.training.methods()
        }
        models = {"original": base, "rescaled": extended} | students
        scores = {
            name: make(
                f"evaluation/{name}",
                stages.evaluate_model,
                *(config.evaluation, name, model, base, samples, data),
                shows=True,
            )
            for name, model in models.items()
        }
        made = (data, extended, profile, layers, students, samples, scores)
        make("report", stages.write_report, config.report, config.digest_values(), *made)
    return run.record.id


def flow(root: Path, overrides: Sequence[str]) -> str:
    """Run the pipeline as the command line does if a server is running; return the run's id."""
    from flows.local import run_pipeline

    return run_pipeline("demo", [f"store.path={root}", *overrides])


def timed(run: Callable[..., str], root: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the seconds of a run and of each stage, and the stages' statuses."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        run_id = run(root, overrides)
    seconds = time.perf_counter() - started
    record = load_run(Store(root), run_id)
    parts = {stage.name: stage.seconds for stage in record.stages}
    return {"seconds": seconds, "stages": parts, "status": {s.status for s in record.stages}}


def time_of_help() -> float:
    """Return the seconds of `longred --help`, the best of five."""
    command = [sys.executable, "-m", "longred.cli", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        best = min(best, time.perf_counter() - started)
    return best


def measure(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Start servers for this benchmark only, measure everything, and stop the servers."""
    root = folder / "served"
    up = services.up(root, ROOT, ports={"prefect": None, "mlflow": None}, say=print)
    os.environ["PREFECT_API_URL"] = f"{up['prefect'].url}/api"
    try:
        warm = [*overrides, "training.num_steps=2", "training.warmup_steps=0"]
        flow(root / "warm", warm)
        library(root / "warm", [*warm, "seed=1"])
        runs: dict[str, list[dict[str, Any]]] = {"library": [], "flow": []}
        for number, name in enumerate(("library", "flow", "flow", "library")):
            side = {"library": library, "flow": flow}[name]
            runs[name].append(timed(side, folder / f"store-{number}", overrides))
        skipped = [timed(flow, folder / "store-1", overrides) for _ in range(3)]
    finally:
        services.down(root)
    assert all(each["status"] == {"skipped"} for each in skipped)
    sums = {name: sum(each["seconds"] for each in each_run) for name, each_run in runs.items()}
    for each in (*runs["library"], *runs["flow"], *skipped):
        each["status"] = sorted(each["status"])
    return {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "help_seconds": time_of_help(),
        "skipped_seconds": min(each["seconds"] for each in skipped),
        "flow_over_library": sums["flow"] / sums["library"],
        "runs": runs,
        "skipped": skipped,
    }


def report(result: dict[str, Any]) -> str:
    """Return the figures as a Markdown page."""
    rows = [
        ("`longred --help`, best of five", f"{result['help_seconds']:.2f} s", "0.5 s"),
        ("every stage skipped, best of three", f"{result['skipped_seconds']:.1f} s", "8 s"),
        ("flow / library calls, wall time", f"{result['flow_over_library']:.3f}", "1.05"),
    ]
    seconds = {
        name: ", ".join(f"{each['seconds']:.1f}" for each in runs)
        for name, runs in result["runs"].items()
    }
    lines = ["# What orchestration costs", "", f"{result['date']}; {result['machine']}.", ""]
    lines += ["| | measured | goal |", "|---|---:|---:|"]
    lines += [f"| {what} | {value} | {goal} |" for what, value, goal in rows]
    lines += ["", f"Seconds of the library calls: {seconds['library']}; of the flow: "]
    lines[-1] += f"{seconds['flow']}. `tests/benchmarks/orchestration.py` measures it."
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.md")
    parser.add_argument(
        "--set", nargs="*", default=[], help="additional recipe overrides, section.key=value"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), [*RECIPE, *arguments.set])
    page = report(result)
    print(page)
    if arguments.output:
        arguments.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        arguments.output.with_suffix(".md").write_text(page)


if __name__ == "__main__":
    main()
