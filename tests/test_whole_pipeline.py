"""Run the pipeline as a user does: all stages are real, with few steps and samples."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SMALL = [
    "data.num_tokens=65536",
    "data.num_held_out_tokens=4096",
    "profiling.num_tokens=1024",
    "training.num_steps=2",
    "training.num_threads=1",
    "training.step_tokens=2048",
    "training.micro_batch_tokens=2048",
    "evaluation.ruler.lengths=[256]",
    "evaluation.ruler.num_samples=4",
    "evaluation.short.num_samples=8",
    "evaluation.similarity_tokens=1024",
    "report.min_points_above_chance=0",
]


def longred(store: Path, *arguments: str) -> str:
    environment = {**os.environ, "LONGRED_STORE": str(store), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "longred.cli", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def run(store: Path, *overrides: str) -> dict[str, Any]:
    longred(store, "run", "demo", *SMALL, *overrides)
    summary: dict[str, Any] = json.loads(longred(store, "show", "latest", "--json"))
    return summary


def statuses(summary: dict[str, Any]) -> dict[str, str]:
    return {name: stage["status"] for name, stage in summary["stages"].items()}


def ran(summary: dict[str, Any]) -> set[str]:
    return {name for name, status in statuses(summary).items() if status == "ran"}


def planned(store: Path, *overrides: str) -> dict[str, str]:
    """Return the stages that a dry run would run, and why."""
    plan = json.loads(longred(store, "run", "demo", *SMALL, *overrides, "--dry-run", "--json"))
    return {stage["name"]: stage["reason"] for stage in plan if stage["runs"]}


@pytest.mark.slow
def test_stages_run_once_and_only_what_follows_a_change_runs_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    made = statuses(first)
    assert made.pop("model") == "skipped"
    assert set(made.values()) == {"ran"}
    assert first["recipe"] == "demo"
    assert set(first["scores"]) == {"original", "rescaled", "longred-c", "cpt"}
    for scores in first["scores"].values():
        assert {"short", "ruler", "retention", "similarity"} <= set(scores)
        assert set(scores["ruler"]) == {"256"}
    assert first["scores"]["original"]["similarity"] == pytest.approx(1.0, abs=1e-6)
    page = Path(first["stages"]["report"]["path"]) / "index.html"
    assert "http://" not in page.read_text().replace("http://www.w3.org", "")

    again = run(tmp_path)
    assert set(statuses(again).values()) == {"skipped"}
    assert again["scores"] == first["scores"]

    rate = "training.learning_rate=1e-4"
    reasons = planned(tmp_path, rate)
    assert reasons["training/cpt"] == "training.learning_rate: 0.0005 -> 0.0001"
    assert reasons["evaluation/cpt"] == "checkpoint changed"
    assert set(reasons) == {
        *(f"{stage}/{m}" for stage in ("training", "evaluation") for m in ("longred-c", "cpt")),
        "report",
    }
    assert json.loads(longred(tmp_path, "show", "--json"))["run"] == again["run"]

    # A setting that only longred-c reads does not rerun cpt.
    reasons = planned(tmp_path, "training.sigma=3")
    sigma = run(tmp_path, "training.sigma=3")
    assert ran(sigma) == {"training/longred-c", "evaluation/longred-c", "report"} == set(reasons)

    longred(tmp_path, "run", "latest", "evaluation.short.num_samples=4", "--only", "evaluation")
    asked = json.loads(longred(tmp_path, "show", "latest", "--json"))
    assert (asked["origin"], asked["part"]) == (sigma["run"], "only evaluation")
    assert "training.sigma=3" in asked["overrides"]
    assert ran(asked) == {name for name in made if name.startswith("evaluation/")}
    assert statuses(asked)["report"] == "stale"


@pytest.mark.slow
def test_the_window_is_raised_in_steps_and_each_student_starts_the_next(tmp_path: Path) -> None:
    way = "[{target_window: 512, rope_theta: 40000}]"
    small = ["training.baselines=[merge]", "evaluation.short.num_samples=4"]
    first = run(tmp_path, f"extension.windows={way}", *small)
    stages = first["stages"]
    for stage in ("extension", "data", "profiling", "selection"):
        assert {f"{stage}/512/longred-c", f"{stage}/1024/longred-c"} <= set(stages)
    middle = Path(stages["training/longred-c-512"]["path"])
    assert json.loads((middle / "config.json").read_text())["max_position_embeddings"] == 512
    start = Path(stages["extension/1024/longred-c"]["path"])
    reference = json.loads((start / "weights.json").read_text())
    assert reference["folder"] == f"../{middle.name}"
    last = json.loads((Path(stages["training/longred-c"]["path"]) / "training.json").read_text())
    assert last["job"]["student_folder"] == str(start)
    assert last["job"]["teacher_folder"] == stages["model"]["path"]
    assert last["job"]["target_window"] == 1024
    merged = json.loads((Path(stages["training/merge"]["path"]) / "training.json").read_text())
    assert (merged["method"], merged["merged_method"]) == ("merge", "cpt")

    # The first window's stages are reused; stages after the change at the second window rerun.
    change = (f"extension.windows={way}", *small, "extension.rope_theta=200000")
    reasons = planned(tmp_path, *change)
    assert not [name for name in reasons if "512" in name]
    assert {"extension", "extension/1024/longred-c", "training/longred-c"} <= set(reasons)
