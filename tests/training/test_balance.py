"""Automatic loss weights: the ratio against float64, smoothing, and resuming."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from dense_step import reference_step
from tiny_training import MakeJob, assert_same_run, curve, run

from longred.errors import ConfigError
from longred.method.methods import LONG, LONGRED, METHODS, SHORT_DISTILL, SHORT_TO_LONG
from longred.store.journal import Journal
from longred.training.balance import LIMIT, SMOOTHING, Balance
from longred.training.loop import train
from longred.training.trainer import Trainer

FIXED = {LONG: 1.0, SHORT_DISTILL: 3.75, SHORT_TO_LONG: 2.5}


def journal(folder: Path, key: str) -> dict[int, float]:
    lines = Journal(folder / "metrics.jsonl").read()
    return {line["step"]: line["value"] for line in lines if line["key"] == key}


def reference_norms(job) -> dict[str, float]:
    """Return the gradient norm of each term, from differences of whole float64 steps."""

    def gradient(short: float, original: float):
        values = {"short_distill_weight": short, "short_to_long_weight": original}
        return reference_step(
            dataclasses.replace(job, weights="fixed", weighting="formula", **values)
        )[1]

    text = gradient(0.0, 0.0)

    def norm(grads, minus=None) -> float:
        parts = [g - minus[n] if minus else g for n, g in grads.items()]
        return math.sqrt(sum(float((part**2).sum()) for part in parts))

    return {
        "long": norm(text),
        "short_distill": norm(gradient(1.0, 0.0), text),
        "short_to_long": norm(gradient(0.0, 1.0), text),
    }


@pytest.mark.medium
@pytest.mark.parametrize("micro_batch_tokens", [1, 4096])
def test_the_first_weights_are_ratios_of_float64_gradient_norms(
    micro_batch_tokens, make_job: MakeJob, tmp_path: Path
):
    job = make_job(weights="auto", micro_batch_tokens=micro_batch_tokens, max_grad_norm=1e9)
    norms = reference_norms(job)
    metrics = Trainer(job, tmp_path).train_step()
    total = metrics["train/long_loss"]
    for name in ("short_distill", "short_to_long"):
        expected = norms["long"] / norms[name]
        assert metrics[f"train/{name}_weight"] == pytest.approx(expected, rel=1e-4)
        total += expected * metrics[f"train/{name}_loss"]
    assert metrics["train/loss"] == pytest.approx(total, rel=1e-4)
    # The measurement leaves no gradients behind.
    weights = {
        "short_distill_weight": metrics["train/short_distill_weight"],
        "short_to_long_weight": metrics["train/short_to_long_weight"],
    }
    _, grads = reference_step(
        dataclasses.replace(job, weights="fixed", weighting="formula", **weights)
    )
    norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
    assert metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_ratios_are_smoothed_in_the_logarithm():
    balance = Balance(FIXED, every_steps=5)
    assert balance.weights() == FIXED
    measured = [(2.0, 0.5, 8.0), (3.0, 0.1, 1.0), (1.0, 2.0, 4.0)]
    for text, short, original in measured:
        balance.observe(text, {SHORT_DISTILL: short, SHORT_TO_LONG: original})
    for term, place in ((SHORT_DISTILL, 1), (SHORT_TO_LONG, 2)):
        ratios = [norms[0] / norms[place] for norms in measured]
        smoothed = math.log(ratios[0])
        for ratio in ratios:
            smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * math.log(ratio)
        assert balance.weights()[term] == pytest.approx(math.exp(smoothed), rel=1e-12)
    assert balance.weights()[LONG] == 1.0
    assert [step for step in range(1, 13) if balance.is_due(step)] == [1, 6, 11]


@pytest.mark.parametrize("norm", [0.0, math.nan, math.inf])
def test_a_gradient_that_says_nothing_changes_nothing(norm):
    balance = Balance(FIXED, every_steps=1)
    balance.observe(2.0, {SHORT_DISTILL: 1.0, SHORT_TO_LONG: norm})
    assert balance.weights()[SHORT_TO_LONG] == FIXED[SHORT_TO_LONG]
    balance.observe(norm, {SHORT_DISTILL: 1.0})
    assert balance.weights()[SHORT_DISTILL] == pytest.approx(2.0)
    balance.observe(1.0, {SHORT_TO_LONG: 1e-30})
    assert balance.weights()[SHORT_TO_LONG] == pytest.approx(LIMIT)


def test_what_is_switched_off_or_has_no_text_beside_it_is_not_balanced():
    off = dict.fromkeys(LONGRED, 0.0) | {LONG: 1.0, SHORT_TO_LONG: 2.5}
    assert Balance(off, every_steps=1).balanced == [SHORT_TO_LONG]
    for method in ("cpt", "mix-cpt", "attention-distill"):
        alone = Balance(dict.fromkeys(METHODS[method].terms, 1.0), every_steps=1)
        assert alone.balanced == []
        assert not alone.is_due(1)


@pytest.mark.medium
def test_weights_are_measured_every_so_often_and_go_on_exactly(
    make_job: MakeJob, processes, tmp_path: Path
):
    job = make_job(weights="auto", weights_every_steps=4, attention_distill_weight=1.0)
    whole = train(job, tmp_path / "whole")
    weight = journal(whole, "train/short_distill_weight")
    changes = [step for step in range(2, 13) if weight[step] != weight[step - 1]]
    assert changes == [5, 9]
    assert journal(whole, "train/attention_distill_weight").keys() == weight.keys()
    last = json.loads((whole / "training.json").read_text())["loss_weights"]
    assert last["train/short_distill_loss"] == weight[12]
    assert last["train/long_loss"] == 1.0
    assert run(processes, job, tmp_path / "work", fault="kill@7") != 0
    assert_same_run(train(job, tmp_path / "work"), whole)


def test_fixed_weights_leave_no_trace(uninterrupted: Path):
    assert not [key for _, key, _ in curve(uninterrupted) if key.endswith("_weight")]


@pytest.mark.parametrize(
    ("values", "key"), [({"weights": "equal"}, "weights"), ({"weights_every_steps": 0}, "steps")]
)
def test_a_wrong_setting_is_named(values, key, make_job: MakeJob):
    with pytest.raises(ConfigError, match=rf"training\.\w*{key}"):
        make_job(**values)
