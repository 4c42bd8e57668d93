"""Every part of the GPU check, small and on the CPU, without the packages that such a box lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parent / "gpu_check.py"
ABSENT = ("pydantic", "typer", "prefect", "mlflow", "datasets", "lm_eval", "peft", "torchao")
BLOCKER = f"""
import sys

sys.modules.update(dict.fromkeys({ABSENT!r}))
"""


def check(part: str, tmp_path: Path) -> dict[str, object]:
    """Run a part in processes none of which can import what is absent."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(BLOCKER)
    paths = os.pathsep.join([str(tmp_path / "site"), str(CHECK.parents[2])])
    run = subprocess.run(
        [sys.executable, str(CHECK), part, "--tiny", "--results", str(tmp_path / "results")],
        env={**os.environ, "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = (tmp_path / "results").iterdir()
    assert path.name.endswith(f"-{part}-tiny.json")
    found: dict[str, object] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_the_tests_that_need_a_gpu_are_found(tmp_path: Path) -> None:
    found = check("tests", tmp_path)
    assert found["tests"] >= 3
    assert found["failures"] == found["errors"] == 0


@pytest.mark.slow
def test_training_is_planned_measured_and_compared(tmp_path: Path) -> None:
    (found,) = (v for v in check("training", tmp_path).values() if isinstance(v, dict))
    assert found["plan"]["step_seconds"] > 0
    assert found["compared"]["largest_relative_loss_difference"] <= 1e-4
    assert set(found["ours"]["losses"][0]) == {
        "train/long_loss",
        "train/short_distill_loss",
        "train/short_to_long_loss",
    }
    assert found["ours"]["top_costs"]


@pytest.mark.slow
def test_attentions_are_compared(tmp_path: Path) -> None:
    (found,) = (v for v in check("profiling", tmp_path).values() if isinstance(v, dict))
    assert found["512"]["seconds_all_layers"] > 0


@pytest.mark.slow
def test_prompts_are_read_and_answers_generated(tmp_path: Path) -> None:
    (found,) = (v for v in check("generation", tmp_path).values() if isinstance(v, dict))
    assert found["256"]["generated_tokens_per_second"] > 0
    assert found["256"]["relative_difference"] < 1e-3
