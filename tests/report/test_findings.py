"""Claims come out as the numbers fall, whichever way."""

from typing import Any

import pytest
from study import Study

from longred.artifacts import read_json
from longred.report.findings import findings
from longred.report.scores import Comparison, Difference, collect


def verdicts(comparison: Comparison, drift: dict[str, Any]) -> list[str]:
    found = findings(comparison, drift, method="longred-c", baselines=["cpt"])
    return [finding.verdict for finding in found]


@pytest.fixture
def comparison(study: Study) -> Comparison:
    return collect(
        study.scores,
        original_window=256,
        min_points_above_chance=10.0,
        method="longred-c",
        baselines=["cpt"],
    )


@pytest.fixture(scope="module")
def drift(study: Study) -> dict[str, Any]:
    found: dict[str, Any] = read_json(study.folders["profile"] / "drift.json")
    return found


def test_a_clear_effect_is_supported(comparison: Comparison, drift: dict[str, Any]) -> None:
    assert verdicts(comparison, drift) == ["supported"] * 4


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.5, 4.0), "supported"),
        ((-4.0, -0.5), "contradicted"),
        ((-1.0, 3.0), "no difference seen"),
        (None, "not testable"),
    ],
)
def test_the_interval_decides(
    comparison: Comparison, drift: dict[str, Any], interval: Any, verdict: str
) -> None:
    comparison.differences[0] = Difference("short average", "longred-c", "cpt", 1.0, interval)
    assert verdicts(comparison, drift)[2] == verdict


def test_less_similarity_contradicts(comparison: Comparison, drift: dict[str, Any]) -> None:
    comparison.models["longred-c"]["similarity"] = 0.9
    assert verdicts(comparison, drift)[1] == "contradicted"


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
