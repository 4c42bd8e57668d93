"""Learning rates against the formulas, and schedules that do not fit."""

import math

import pytest
from tiny_training import MakeJob

from longred.config import load_recipe
from longred.errors import ConfigError
from longred.method.schedules import learning_rate


def rates(job) -> list[float]:
    return [learning_rate(step, job) for step in range(1, job.num_steps + 1)]


def test_constant(make_job: MakeJob):
    assert rates(make_job(num_steps=4, learning_rate=0.5, warmup_steps=2)) == [0.25, 0.5, 0.5, 0.5]
    assert rates(make_job(num_steps=2, learning_rate=0.5, warmup_steps=0)) == [0.5, 0.5]


def test_cosine(make_job: MakeJob):
    job = make_job(
        schedule="cosine", num_steps=10, warmup_steps=2, learning_rate=1.0, min_learning_rate=0.1
    )
    fall = [0.1 + 0.9 * (1 + math.cos(math.pi * done / 8)) / 2 for done in range(1, 9)]
    assert rates(job) == pytest.approx([0.5, 1.0, *fall])
    assert rates(job)[-1] == pytest.approx(0.1)


def test_warm_up_stable_decay(make_job: MakeJob):
    job = make_job(schedule="wsd", num_steps=8, warmup_steps=2, decay_steps=4, learning_rate=1.0)
    assert rates(job) == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0])
    job = make_job(
        schedule="wsd", num_steps=3, warmup_steps=0, decay_steps=3, min_learning_rate=5e-4
    )
    assert rates(job) == pytest.approx([2.5e-3 / 3, 2e-3 / 3, 5e-4])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "linear"}, r"training\.schedule"),
        ({"schedule": "wsd"}, r"training\.decay_steps: give the length .* got 0 with wsd"),
        ({"decay_steps": 3}, r"training\.decay_steps: .* got 3 with constant"),
        ({"min_learning_rate": 1e-5}, r"training\.min_learning_rate: schedule constant"),
        (
            {"schedule": "cosine", "min_learning_rate": 1.0},
            r"training\.min_learning_rate: 1 is not between",
        ),
        (
            {"schedule": "wsd", "decay_steps": 4, "warmup_steps": 9, "num_steps": 12},
            r"training\.warmup_steps: 9 steps of warm-up and 4 of decay",
        ),
        ({"schedule": "cosine", "warmup_steps": 12, "num_steps": 12}, r"training\.warmup_steps"),
    ],
)
def test_what_does_not_fit_is_named_by_job_and_recipe(values, message, make_job: MakeJob):
    with pytest.raises(ConfigError, match=message):
        make_job(**values)
    with pytest.raises(ConfigError, match=message):
        load_recipe("demo", [f"training.{name}={value}" for name, value in values.items()])
