"""Aggregation of hand-written answers."""

import numpy as np
import pytest

from longred.evaluation.results import combined, summary


def test_summary_has_binomial_error() -> None:
    found = summary([{"score": s} for s in [100.0] * 30 + [0.0] * 70], 25.0)
    assert found["score"] == pytest.approx(30.0)
    assert found["stderr"] == pytest.approx(100 * np.sqrt(0.3 * 0.7 / 100))
    assert (found["num_samples"], found["chance"], found["truncated"]) == (100, 25.0, 0)
    assert "eos_rate" not in found


def test_summary_tells_how_answers_ended() -> None:
    answers = [
        {"score": 100.0, "ended": "eos", "output_tokens": 3},
        {"score": 0.0, "ended": "budget", "output_tokens": 16, "truncated": True},
        {"score": 0.0, "ended": "stop", "output_tokens": 5},
        {"score": 100.0, "ended": "eos", "output_tokens": 4},
    ]
    found = summary(answers, 0.0)
    assert (found["eos_rate"], found["budget_rate"]) == (50.0, 25.0)
    assert found["output_tokens"] == 7.0
    assert found["truncated"] == 1


def test_parts_count_by_their_samples() -> None:
    first, second = [{"score": 100.0}] * 3, [{"score": 0.0}]
    results = [summary(first, 25.0), summary(second, 25.0)]
    assert combined(results, [*first, *second])["score"] == 75.0
    # A metric without a value per answer has the same mean and no standard error.
    found = combined(results, [])
    assert (found["score"], found["stderr"], found["num_samples"]) == (75.0, None, 4)
    assert combined(results[:1], first) == results[0]
