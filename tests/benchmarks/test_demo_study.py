"""Check the study's averages against values computed by hand from two seeds of written scores."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from longred.config import RunConfig, load_recipe
from longred.store.artifacts import write_json

# Task → (capacity, chance). Scores below are per seed, in the order of MODELS.
TASKS = {"a": ("reading", 25.0), "b": ("reading", 0.0), "c": ("coding", 25.0)}
SHORT = [
    {"a": (50.0, 40.0, 45.0), "b": (80.0, 20.0, 60.0), "c": (34.0, 30.0, 90.0)},
    {"a": (60.0, 50.0, 60.0), "b": (90.0, 50.0, 81.0), "c": (35.5, 30.0, 20.0)},
]
RULER = [
    {256: (90.0, 30.0, 60.0), 1024: (2.0, 10.0, 20.0)},
    {256: (80.0, 20.0, 40.0), 1024: (4.0, 20.0, 60.0)},
]
MODELS = ("original", "cpt", "longred-c")


@pytest.fixture(scope="module")
def demo_study() -> ModuleType:
    path = Path(__file__).with_name("demo_study.py")
    spec = importlib.util.spec_from_file_location("demo_study", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config() -> RunConfig:
    return load_recipe("demo", [])


@pytest.fixture
def folders(tmp_path: Path) -> list[dict[str, Path]]:
    """Write the scores of two seeds, three models each; return their folders."""
    found = []
    for seed, (short, ruler) in enumerate(zip(SHORT, RULER, strict=True)):
        found.append({name: tmp_path / f"{name}-{seed}" for name in MODELS})
        for place, name in enumerate(MODELS):
            values = {
                "short": {
                    task: {"score": scores[place], "chance": TASKS[task][1]}
                    | {"capacity": TASKS[task][0]}
                    for task, scores in short.items()
                },
                "ruler": {
                    str(length): {"niah_single_1": {"score": scores[place], "chance": 0.0}}
                    for length, scores in ruler.items()
                },
                "similarity": {"last": 0.9 + 0.01 * place, "per_layer": [0.9]},
            }
            found[-1][name].mkdir()
            write_json(found[-1][name] / "scores.json", values)
    return found


def test_one_set_of_tasks_for_all_seeds(
    demo_study: ModuleType, folders: list[dict[str, Path]], config: RunConfig
) -> None:
    # Task c is 9 points above chance in seed 0 and 10.5 in seed 1: the mean, 9.75, is below 10.
    values, text = demo_study.result(folders, config)
    reason = (
        "the original scores 34.8 where guessing scores 25.0; "
        "at least 10 points more are needed (mean over 2 seeds)"
    )
    assert values["dropped"] == [{"task": "c", "length": None, "reason": reason}]
    assert values["dropped_capacities"] == ["coding"]
    assert values["capacities"] == {"reading": ["a", "b"]}
    assert all(set(run["cpt"]["short"]) == {"a", "b", "average"} for run in values["runs"])
    summary: dict[str, Any] = values["summary"]
    assert summary["short average"]["longred-c"]["values"] == [52.5, 70.5]
    assert summary["short average"]["cpt"]["mean"] == (30.0 + 50.0) / 2
    retention = [100 * 52.5 / 65, 100 * 70.5 / 75]
    assert summary["short retention"]["longred-c"]["values"] == pytest.approx(retention)
    assert f"- c: {reason}." in text.splitlines()


def test_ruler_is_judged_at_the_original_window_and_listed_by_length(
    demo_study: ModuleType, folders: list[dict[str, Path]], config: RunConfig
) -> None:
    summary = demo_study.result(folders, config)[0]["summary"]
    assert summary["RULER at 256 tokens"]["longred-c"]["mean"] == 50.0
    assert summary["RULER at 1,024 tokens"]["original"]["mean"] == 3.0
    assert summary["RULER at 1,024 tokens"]["difference"]["mean"] == 25.0
    kept = [100 * 60 / 90, 50.0]
    assert summary["RULER retention at 256 tokens"]["longred-c"]["values"] == pytest.approx(kept)
    assert "RULER retention at 1,024 tokens" not in summary


def test_tasks_are_averaged_over_seeds_by_model(
    demo_study: ModuleType, folders: list[dict[str, Path]], config: RunConfig
) -> None:
    values, text = demo_study.result(folders, config)
    means = {(entry["task"], entry["length"]): entry["mean"] for entry in values["tasks"]}
    assert means["b", None] == {"original": 85.0, "cpt": 35.0, "longred-c": 70.5}
    assert means["niah_single_1", 1024] == {"original": 3.0, "cpt": 15.0, "longred-c": 40.0}
    lines = text.splitlines()
    assert "| task | original | cpt | longred-c |" in lines
    assert "| c (dropped) | 34.75 | 30.00 | 55.00 |" in lines
    assert "| niah_single_1 at 256 tokens | 85.00 | 25.00 | 50.00 |" in lines


def test_the_interval_is_students_over_pairs(demo_study: ModuleType) -> None:
    # Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.302653.
    found = demo_study.paired_difference([11.0, 12.0, 13.0], [10.0, 10.0, 10.0])
    half = 4.302653 / 3**0.5
    assert found == pytest.approx({"mean": 2.0, "low": 2.0 - half, "high": 2.0 + half})
    assert demo_study.paired_difference([3.0], [1.0]) == {"mean": 2.0, "low": None, "high": None}
