"""The cost of an evaluation against RULER's tasks, simulated prompts and sums by hand."""

import dataclasses

import numpy as np
import pytest

from longred.config import EvaluationConfig
from longred.config.evaluation import RULER_TASKS
from longred.cost.evaluation import (
    CACHE_SHARE,
    LAYER_SECONDS,
    MAX_ROWS,
    PROMPTS,
    answer_seconds,
    evaluation_cost,
    new_shares,
)
from longred.cost.shape import ModelShape, named_config, shape_of
from longred.cost.speeds import known
from longred.evaluation import generation
from longred.evaluation.ruler.tasks import TASKS


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return shape_of(named_config("meta-llama/Meta-Llama-3-8B"))


def test_prompts_are_those_of_the_tasks() -> None:
    assert tuple(PROMPTS) == RULER_TASKS
    for name, prompts in PROMPTS.items():
        settings = TASKS[name].full
        assert prompts.budget == settings.budget
        is_shared = getattr(settings, "haystack", "needles") != "needles"
        count = settings.num_keys * settings.num_values if is_shared else None
        assert prompts.num_needles == count, name
    assert MAX_ROWS == generation.MAX_ROWS


@pytest.mark.parametrize("num_needles", [1, 4])
def test_shares_are_those_of_simulated_prompts(num_needles: int) -> None:
    rng = np.random.default_rng(0)
    first = rng.random((100_000, num_needles)).min(axis=1)
    # In order of their first needle, each prompt begins as the one before does, up to its needle.
    linear, attention = (1 - first).mean(), (1 - first**2).mean()
    assert new_shares(num_needles) == pytest.approx((linear, attention), abs=5e-3)
    assert new_shares(None) == (1.0, 1.0)


def test_answers_take_the_slowest_of_three(shape: ModelShape) -> None:
    speeds = known("h200")
    weights = 2 * shape.num_parameters
    row = 2 * 2 * 32 * 8 * 128 * (32768 + 128)
    rows = int(CACHE_SHARE * (speeds.memory_bytes - weights) / row)
    assert 16 < rows < 40
    expected = (weights + rows * row) / speeds.bandwidth * 128 * 500 / rows
    assert answer_seconds(shape, speeds, 32768, 128, 500) == pytest.approx(expected)
    # A single short prompt waits for Python.
    alone = answer_seconds(shape, speeds, 100, 10, 1)
    assert alone == pytest.approx(LAYER_SECONDS * 32 * 10)
    slow = dataclasses.replace(speeds, matmul_flops=1e9)
    assert answer_seconds(shape, slow, 100, 10, 1) > 100 * alone


def test_ruler_on_an_8b_model_takes_less_than_two_and_a_half_hours(shape: ModelShape) -> None:
    config = EvaluationConfig.model_validate(
        {
            "ruler": {"lengths": [32768], "num_samples": 500},
            "references": [],
            "original_window": 8192,
            "target_window": 32768,
        }
    )
    cost = evaluation_cost(config, shape, known("h200"), 1)
    assert 1.0 < cost["seconds"] / 3600 < 2.5
    # Reading alone, at the full rate of the device.
    assert cost["flops"] / known("h200").peak_flops < cost["seconds"]
    assert 0.8 * 13 * 500 * 32768 < cost["tokens"] < 13 * 500 * (32768 + 128)
    twice = evaluation_cost(config, shape, known("h200"), 2)
    assert twice["seconds"] == pytest.approx(2 * cost["seconds"])
