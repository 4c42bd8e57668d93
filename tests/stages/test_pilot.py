"""A pilot: measurements from a journal, the verdict, and a run that resumes from the pilot."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longred.cli import app
from longred.cost.recipe import RecipePlan, choose_speeds, jobs, plan_recipe, shape_of_model
from longred.cost.speeds import known
from longred.errors import ConfigError
from longred.runs.record import load_config
from longred.stages.pilot import Measured, judge, read
from longred.store.journal import Journal


@pytest.fixture(scope="module")
def plan() -> RecipePlan:
    """The plan of the demo recipe on an H100."""
    config = load_config("demo")
    return plan_recipe(config, shape_of_model(config), known("h100"))


def measured(plan: RecipePlan, **values: object) -> Measured:
    """Steps as planned, except for the given values."""
    planned = plan.trainings[0]
    as_planned = Measured(
        first_step=1,
        last_step=20,
        step_seconds=planned.step_seconds,
        tokens_per_second=planned.tokens_per_second,
        mfu=planned.mfu,
        peak_memory_bytes=planned.memory_bytes,
        losses={"train/loss": (4.0, 3.0)},
        num_spikes=0,
    )
    return dataclasses.replace(as_planned, **values)


def test_a_pilot_as_planned_is_a_go_and_says_what_is_left(plan: RecipePlan, tmp_path: Path) -> None:
    found = judge(plan, measured(plan), tmp_path, price_per_gpu_hour=2.0)
    assert found.reasons == ()
    first, second = plan.trainings
    # Twenty of the demo's sixty steps are done; its baseline is still to be trained.
    assert found.remaining_seconds == pytest.approx(40 * first.step_seconds + second.seconds)
    others = plan.profiling["seconds"] + plan.evaluation["seconds"]
    hours = (found.remaining_seconds + others) / 3600
    assert found.remaining_gpu_hours == pytest.approx(hours)
    assert found.price == pytest.approx(2 * hours)
    assert json.loads(json.dumps(found.to_json()))["verdict"] == "go"


def test_what_takes_twice_as_long_costs_twice_as_much(plan: RecipePlan, tmp_path: Path) -> None:
    slow = measured(plan, step_seconds=2 * plan.trainings[0].step_seconds)
    found = judge(plan, slow, tmp_path)
    assert found.reasons == ("a step takes 2.0 times as long as planned",)
    as_planned = judge(plan, measured(plan), tmp_path)
    assert found.remaining_gpu_hours == pytest.approx(2 * as_planned.remaining_gpu_hours)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"losses": {"train/loss": (3.0, 4.0)}}, "the loss rose from 3.0000 to 4.0000"),
        ({"num_spikes": 2}, "the loss spiked in 2 steps"),
        ({"peak_memory_bytes": 79 * 2.0**30}, "of the memory is in use"),
    ],
)
def test_each_reason_is_a_no_go(
    plan: RecipePlan, tmp_path: Path, values: dict[str, object], reason: str
) -> None:
    found = judge(plan, measured(plan, **values), tmp_path)
    assert len(found.reasons) == 1
    assert reason in found.reasons[0]
    assert found.to_json()["verdict"] == "no-go"


def test_the_last_steps_of_a_journal_are_read_without_the_first_of_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    for step, speed, loss in ((1, 9.0, 9.0), (2, 1.0, 5.0), (3, 10.0, 4.0), (4, 20.0, 3.0)):
        metrics = {"train/tokens_per_second": speed, "train/mfu": speed / 100}
        metrics |= {"train/peak_memory_bytes": 100.0 + step, "train/loss": loss}
        journal.append({**metrics, "train/long_loss": 2 * loss}, step=step)
    journal.close()
    found = read(journal.path, 3, step_tokens=300)
    assert (found.first_step, found.last_step) == (2, 4)
    assert found.tokens_per_second == 15.0
    assert found.step_seconds == 20.0
    assert found.peak_memory_bytes == 104.0
    assert found.losses == {"train/loss": (5.0, 3.0), "train/long_loss": (10.0, 6.0)}


def test_every_training_of_a_recipe_is_planned(plan: RecipePlan) -> None:
    config = load_config("demo", ["training.baselines=[merge,cpt,mix-cpt]"])
    shape = shape_of_model(config)
    # merge has no training of its own; it uses cpt's.
    assert [job.method for job in jobs(config, shape)] == ["longred-c", "cpt", "mix-cpt"]
    longred, cpt, _mix = jobs(config, shape)
    assert longred.rows == {"long": 4, "short": 24, "original": 4}
    assert cpt.rows == {"long": 8}
    assert [one.method for one in plan.trainings] == ["longred-c", "cpt"]
    assert plan.trainings[0].tokens == 60 * 8192
    measured_here = choose_speeds(config, shape, device="h200")
    assert (measured_here.name, measured_here.is_measured) == ("h200", False)


def test_a_pilot_goes_with_no_part_of_the_pipeline(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", "demo", "--pilot", "4", "--only", "training"])
    assert isinstance(result.exception, ConfigError)
    result = CliRunner().invoke(app, ["run", "demo", "--pilot", "1"])
    assert "2 steps or more" in str(result.exception)


def test_plan_says_what_does_not_fit_and_what_would(tmp_path: Path) -> None:
    arguments = ["plan", "demo", "--only", "cost", "--device", "rtx-4090", "--json"]
    huge = ["training.micro_batch_tokens=134217728", "training.step_tokens=268435456"]
    huge += ["training.max_epochs=1e9"]
    result = CliRunner().invoke(app, [*arguments, *huge, "--price-per-gpu-hour", "0.5"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["verdict"]["verdict"] == "does not fit"
    cost = found["cost"]
    remedy = cost["advice"][0]
    assert remedy["memory_bytes"] < cost["device"]["memory_bytes"]
    assert remedy["settings"] == ["training.micro_batch_tokens=1024"]
    # The advised overrides have the stated effect.
    result = CliRunner().invoke(app, [*arguments, *huge, *remedy["settings"]])
    again = json.loads(result.output)
    assert again["verdict"]["verdict"] == "fits"
    most = max(one["memory_bytes"] for one in again["cost"]["trainings"])
    assert most == pytest.approx(remedy["memory_bytes"])
    assert cost["price"] == pytest.approx(0.5 * cost["gpu_hours"])


@pytest.mark.slow
def test_a_pilot_measures_real_steps_and_the_training_goes_on_from_them(tmp_path: Path) -> None:
    changes = [
        "data.num_tokens=65536",
        "data.num_held_out_tokens=4096",
        "profiling.num_tokens=1024",
        "training.num_steps=5",
        "training.num_threads=1",
    ]
    command = [sys.executable, "-m", "longred.cli", "run", "demo", "--pilot", "3", "--json"]
    run = subprocess.run(
        [*command, *changes],
        env={**os.environ, "LONGRED_STORE": str(tmp_path), "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert (found["measured"]["first_step"], found["measured"]["last_step"]) == (1, 3)
    assert found["planned"]["step_seconds"] > 0
    assert found["verdict"] in ("go", "no-go")
    # The pilot leaves a checkpoint for the run to resume from, but no run and no student.
    (checkpoint,) = tmp_path.glob("work/*/checkpoints/step-*")
    assert checkpoint.name == "step-000003"
    assert not list(tmp_path.glob("runs/*"))
    assert not list(tmp_path.glob("artifacts/training-*"))
