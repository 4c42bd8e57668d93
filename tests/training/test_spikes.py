"""Loss spikes: detection, warnings, and when they end a training."""

import dataclasses
import json
import math
import random
import statistics
from pathlib import Path

import pytest
from tiny_training import MakeJob, assert_same_run, run

from longred.errors import LossSpikeError
from longred.store.journal import Journal
from longred.training.checks import SpikeGuard
from longred.training.loop import leave_if_spiking, train
from longred.training.persistence import load, save
from longred.training.trainer import Trainer


def guard(**values) -> SpikeGuard:
    return SpikeGuard(**{"spike_mads": 10.0, "halt_after": 3, **values})


def draw(count: int) -> list[float]:
    generator = random.Random(0)
    return [generator.gauss(3.0, 0.1) for _ in range(count)]


def test_a_loss_is_judged_by_the_hundred_before_it():
    losses = draw(250)
    ours = guard(spike_mads=2.0)
    found = [ours.observe(step, loss) for step, loss in enumerate(losses, start=1)]
    for i, loss in enumerate(losses):
        window = losses[max(0, i - 100) : i]
        expected = -math.inf
        if len(window) >= 20:
            middle = statistics.median(window)
            expected = (loss - middle) / statistics.median(abs(x - middle) for x in window)
        assert found[i] == (pytest.approx(expected) if expected > 2.0 else None)
    assert sum(value is not None for value in found) > 5


@pytest.mark.parametrize(
    ("losses", "loss", "is_spike"),
    [
        (draw(100), 300.0, True),
        (draw(100), 3.5, False),
        (draw(100), -300.0, False),
        (draw(19), 300.0, False),
        (draw(20), 300.0, True),
        ([2.0] * 50, 2.001, False),
        ([2.0] * 50, 2.1, True),
        ([0.0] * 50, 0.0, False),
    ],
)
def test_only_leaps_upwards_are_spikes(losses, loss, is_spike, caplog):
    ours = guard()
    for step, value in enumerate(losses, start=1):
        ours.observe(step, value)
    caplog.clear()
    assert (ours.observe(len(losses) + 1, loss) is not None) == is_spike
    assert ("median absolute deviations above" in caplog.text) == is_spike


def test_the_training_ends_after_three_in_a_row_and_not_before():
    ours = guard()
    losses = [*draw(30), 300.0, 3.0, 300.0, 310.0, 320.0]
    problems = []
    for step, loss in enumerate(losses, start=1):
        ours.observe(step, loss)
        problems.append(ours.problem(step, 25))
    assert problems[:-1] == [None] * 34
    assert problems[-1].startswith("step 35: the loss has spiked in 3 steps in a row, from step 33")
    assert "checkpoint is of step 25" in problems[-1]
    assert "training.learning_rate" in problems[-1]
    never = guard(halt_after=0)
    for step, loss in enumerate(losses, start=1):
        never.observe(step, loss)
        assert never.problem(step, 25) is None


def test_state_goes_on_exactly():
    whole, cut = guard(), guard()
    losses = [*draw(120), 300.0, 310.0]
    for step, loss in enumerate(losses, start=1):
        whole.observe(step, loss)
        cut.observe(step, loss)
        again = guard()
        again.load_state(cut.state())
        cut = again
    assert cut.state() == whole.state()
    assert cut.observe(123, 320.0) == whole.observe(123, 320.0)
    assert cut.problem(123, 0) == whole.problem(123, 0) is not None


@pytest.fixture(scope="module")
def long_job(make_job: MakeJob):
    return make_job(method="cpt", num_steps=28, save_every_steps=10, learning_rate=1e-4)


def spikes(work: Path) -> dict[int, float]:
    lines = Journal(work / "metrics.jsonl").read()
    return {line["step"]: line["value"] for line in lines if line["key"] == "train/loss_spike"}


@pytest.mark.medium
def test_a_spike_is_told_of_and_the_training_goes_on(long_job, processes, tmp_path: Path):
    assert run(processes, long_job, tmp_path, fault="spike@24") == 0
    assert list(spikes(tmp_path)) == [24]
    assert spikes(tmp_path)[24] > 10
    summary = json.loads((tmp_path / "result/training.json").read_text())
    assert summary["num_steps"] == 28


@pytest.mark.medium
def test_three_in_a_row_end_the_training_which_resumes_exactly(long_job, processes, tmp_path: Path):
    whole = train(long_job, tmp_path / "whole")
    work = tmp_path / "work"
    assert run(processes, long_job, work, fault="three-spikes@24") == 5
    assert list(spikes(work)) == [24, 25, 26]
    assert sorted(path.name for path in (work / "checkpoints").iterdir()) == [
        "step-000010",
        "step-000020",
    ]
    # Resumed without the fault, the training equals one that never had it.
    assert_same_run(train(long_job, work), whole)


def test_spikes_before_a_checkpoint_count_after_it(
    long_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(SpikeGuard, "_deviations", lambda self, loss: 50.0)
    first = Trainer(long_job, tmp_path)
    first.train_step()
    first.train_step()
    leave_if_spiking(first)
    save(first)
    second = Trainer(long_job, tmp_path)
    load(second)
    second.train_step()
    with pytest.raises(LossSpikeError, match=r"step 3: .* 3 steps in a row, from step 1 on") as end:
        leave_if_spiking(second)
    assert end.value.exit_code == 5
    regardless = Trainer(dataclasses.replace(long_job, halt_after_spikes=0), tmp_path)
    load(regardless)
    assert regardless.step == 2
    regardless.train_step()
    leave_if_spiking(regardless)
