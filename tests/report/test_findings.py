"""Intervals decide the claims; other numbers are only reported."""

from copy import deepcopy
from typing import Any

import pytest
from study import Study

from longred.report.findings import findings
from longred.report.measures import Difference
from longred.report.scores import Comparison, collect
from longred.store.artifacts import read_json


def verdicts(comparison: Comparison, drift: dict[str, Any]) -> list[str]:
    found = findings(comparison, drift, method="longred-c", baselines=["cpt"])
    return [finding.verdict for finding in found]


@pytest.fixture(scope="module")
def collected(study: Study) -> Comparison:
    return collect(
        study.scores,
        original_window=256,
        min_points_above_chance=10.0,
        method="longred-c",
        baselines=["cpt"],
    )


@pytest.fixture
def comparison(collected: Comparison) -> Comparison:
    """A copy, because tests change it."""
    return deepcopy(collected)


@pytest.fixture(scope="module")
def drift(study: Study) -> dict[str, Any]:
    found: dict[str, Any] = read_json(study.folders["profile"] / "drift.json")
    return found


def test_only_quantities_with_an_interval_are_judged(
    comparison: Comparison, drift: dict[str, Any]
) -> None:
    assert verdicts(comparison, drift) == ["measured", "higher", "supported", "supported"]


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.5, 4.0), "supported"),
        ((-4.0, -0.5), "contradicted"),
        ((-1.0, 3.0), "not decided"),
        (None, "not testable"),
    ],
)
def test_the_interval_decides(
    comparison: Comparison, drift: dict[str, Any], interval: Any, verdict: str
) -> None:
    comparison.differences[0] = Difference("short average", "longred-c", "cpt", 1.0, interval)
    assert verdicts(comparison, drift)[2] == verdict


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.9, 4.0), "supported"),
        ((-1.0, 4.0), "not decided"),
        ((-3.0, -0.5), "not decided"),
        ((-4.0, -1.1), "contradicted"),
        (None, "not testable"),
    ],
)
def test_no_worse_leaves_a_margin_of_one_point(
    comparison: Comparison, drift: dict[str, Any], interval: Any, verdict: str
) -> None:
    measure = "RULER at 1,024 tokens"
    comparison.differences[-1] = Difference(measure, "longred-c", "cpt", -0.5, interval)
    found = findings(comparison, drift, method="longred-c", baselines=["cpt"])[3]
    assert found.verdict == verdict
    assert "within 1 point" in found.claim


def test_similarity_is_stated_without_a_verdict(
    comparison: Comparison, drift: dict[str, Any]
) -> None:
    comparison.models["longred-c"]["similarity"] = 0.9
    found = findings(comparison, drift, method="longred-c", baselines=["cpt"])[1]
    assert found.verdict == "lower"
    assert "0.9000 against 0.9790, without an interval" in found.evidence
    comparison.models["cpt"]["similarity"] = 0.9
    assert verdicts(comparison, drift)[1] == "equal"
    comparison.models["cpt"]["similarity"] = None
    assert verdicts(comparison, drift)[1] == "not testable"


def test_tasks_all_dropped_are_not_testable(study: Study, drift: dict[str, Any]) -> None:
    found = collect(
        study.scores,
        original_window=256,
        min_points_above_chance=101.0,
        method="longred-c",
        baselines=["cpt"],
    )
    assert verdicts(found, drift)[2:] == ["not testable", "not testable"]
    evidence = findings(found, drift, method="longred-c", baselines=["cpt"])[2].evidence
    assert "too close to chance" in evidence
