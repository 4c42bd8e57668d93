"""Aggregation of hand-written answers."""

import pytest

from longred.evaluation.results import combined, summary


def test_summary_has_the_interval_of_the_mean() -> None:
    found = summary([{"score": s} for s in [100.0] * 30 + [0.0] * 70], 25.0)
    assert found["score"] == pytest.approx(30.0)
    # Newcombe 1998, method 4: 30 of 100.
    assert found["interval"] == pytest.approx([21.454, 40.106], abs=0.001)
    assert (found["num_samples"], found["chance"], found["truncated"]) == (100, 25.0, 0)
    assert "eos_rate" not in found
    assert "unparsed" not in found


def test_answers_of_one_group_count_as_one_draw_of_the_interval() -> None:
    scores = [100.0, 100.0, 0.0, 50.0]
    single = [{"score": score, "group": f"text {i}"} for i, score in enumerate(scores)]
    whole = summary(single, 0.0)
    repeated = summary([answer for answer in single for _ in range(5)], 0.0)
    assert repeated["num_samples"] == 20
    assert (repeated["score"], repeated["interval"]) == (whole["score"], whole["interval"])
    alone = summary([{"score": score} for score in scores for _ in range(5)], 0.0)
    assert alone["interval"][0] > whole["interval"][0] + 10


def test_only_generated_answers_can_be_unparsed() -> None:
    generated = {"ended": "eos", "output_tokens": 3}
    answers = [
        {"score": 0.0, "unparsed": True, **generated},
        {"score": 0.0, "unparsed": False, **generated},
        {"score": 100.0, **generated},
    ]
    assert summary(answers, 0.0)["unparsed"] == 1
    assert summary(answers[1:], 0.0)["unparsed"] == 0


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
    # A metric without a value per answer has the same mean and no interval.
    found = combined(results, [])
    assert (found["score"], found["interval"], found["num_samples"]) == (75.0, None, 4)
    assert combined(results[:1], []) == results[0]
    assert combined(results[:1], first) == results[0]
