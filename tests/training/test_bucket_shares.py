"""A bucket whose part of a step is 0: its cross-entropy is left out, and no row is read."""

import math
from pathlib import Path

import pytest
from dense_step import reference_step
from tiny_training import MakeJob

from longred.method.methods import METHODS
from longred.training.step import fixed_weights
from longred.training.trainer import Trainer


@pytest.mark.parametrize("micro_batch_tokens", [1, 4096])
def test_mixed_text_without_original_blocks_is_the_float64_step(
    micro_batch_tokens: int, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(
        method="mix-cpt",
        ratio={"long": 3, "short": 2, "original": 0},
        rows={"long": 2, "short": 5},
        micro_batch_tokens=micro_batch_tokens,
        max_grad_norm=1e9,
    )
    weights = {term.metric: weight for term, weight in fixed_weights(job).items()}
    assert weights == {"train/long_loss": 0.6, "train/short_loss": 0.4}
    losses, grads = reference_step(job)
    metrics = Trainer(job, tmp_path).train_step()
    assert "train/original_loss" not in metrics
    expected = 0.6 * losses["train/long_loss"] + 0.4 * losses["train/short_loss"]
    assert metrics["train/loss"] == pytest.approx(expected, rel=1e-5)
    norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
    assert metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_only_terms_on_buckets_of_zero_are_left_out() -> None:
    ratio = {"long": 0, "short": 1, "original": 0}
    assert METHODS["mix-cpt"].reading(ratio).buckets() == ("short",)
    assert METHODS["cpt"].reading(ratio).terms == ()
    full = {"long": 4, "short": 3, "original": 1}
    for method in METHODS.values():
        assert method.reading(full) is method
        assert method.reading({}) is method


def test_one_bucket_alone_is_a_training_too(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(
        method="mix-cpt", ratio={"long": 0, "short": 1, "original": 0}, rows={"short": 5}
    )
    losses, _ = reference_step(job)
    metrics = Trainer(job, tmp_path).train_step()
    assert metrics["train/loss"] == pytest.approx(losses["train/short_loss"], rel=1e-5)
    assert not METHODS["mix-cpt"].reading(job.ratio).unused_settings() & {"ratio"}
    assert METHODS["cpt"].unused_settings() >= {"ratio"}
