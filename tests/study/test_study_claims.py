"""Verdicts: for each form of a test, with missing values, one seed, and the correction."""

from typing import Any

import pytest

from longred.study.claims import judge
from longred.study.result import Cell, ClaimResult
from longred.study.spec import Study
from tests.study.study_results import cell, row, scores

SEEDS = [0, 1, 2, 3, 4]
CELLS: dict[tuple[str, str], list[Cell]] = {
    ("4x", "a"): row([75.0, 75.4, 74.8, 75.2, 74.9], [50.0, 51.0, 49.5, 50.5, 50.2], 0.99),
    ("4x", "b"): row([70.1, 70.3, 69.9, 70.4, 70.0], [50.6, 51.2, 50.3, 51.0, 50.9], 0.96),
    ("4x", "noise"): row([60.0, 90.0, 70.0, 85.0, 68.0], [10.0, 90.0, 40.0, 80.0, 20.0], 0.97),
}


def verdict(*tests: dict[str, Any], cells: Any = None) -> ClaimResult:
    """Return the verdict on one claim with these tests."""
    known = CELLS if cells is None else cells
    panels: dict[str, Any] = {}
    for panel, variant in known:
        group = panels.setdefault(panel, {"title": panel, "baseline": variant, "variants": {}})
        group["variants"][variant] = {}
    values = {
        "title": "t",
        "recipe": "demo",
        "seeds": SEEDS,
        "panels": panels,
        "claims": [{"text": "c", "tests": list(tests)}],
    }
    (found,) = judge(Study.model_validate(values), known, "demo")
    return found


def above(of: str, than: str, measure: str = "short_average", **more: Any) -> dict[str, Any]:
    return {"measure": measure, "of": of, "above": than, **more}


def test_a_clear_difference_holds_and_its_opposite_does_not() -> None:
    found = verdict(above("4x/a", "4x/b"))
    assert found.verdict == "holds"
    (test,) = found.tests
    assert test.difference is not None
    assert test.difference.mean == pytest.approx(4.92)
    assert test.text == "short average of a (4x) above b (4x)"
    assert test.command == "longred study demo --only 4x/a,4x/b"
    assert verdict(above("4x/b", "4x/a")).verdict == "does not hold"


def test_noise_is_not_decided() -> None:
    assert verdict(above("4x/noise", "4x/b")).verdict == "not decided"


def test_a_margin_asks_for_no_worse_and_a_negative_one_for_a_lead() -> None:
    assert verdict(above("4x/a", "4x/b", "ruler")).verdict == "does not hold"
    found = verdict(above("4x/a", "4x/b", "ruler", margin=1))
    assert found.verdict == "holds"
    assert "no more than 1 below" in found.tests[0].text
    assert found.tests[0].difference is not None
    assert found.tests[0].difference.mean == pytest.approx(-0.56)
    assert verdict(above("4x/a", "4x/b", margin=-6)).verdict == "does not hold"
    assert verdict(above("4x/a", "4x/b", margin=-4)).verdict == "holds"


def test_a_claim_holds_only_if_all_of_its_tests_do() -> None:
    good, bad = above("4x/a", "4x/b"), above("4x/b", "4x/a")
    open_ = above("4x/noise", "4x/b")
    assert verdict(good, open_).verdict == "not decided"
    assert verdict(good, open_, bad).verdict == "does not hold"
    assert verdict(good, {"measure": "short_average", "peaks": "4x/a"}).verdict == "not testable"


def judged(*claims: list[dict[str, Any]]) -> list[ClaimResult]:
    """Return the verdicts on several claims."""
    group = {"title": "4x", "baseline": "a", "variants": {"a": {}, "b": {}, "noise": {}}}
    values = {
        "title": "t",
        "recipe": "demo",
        "seeds": SEEDS,
        "panels": {"4x": group},
        "claims": [{"text": "c", "tests": tests} for tests in claims],
    }
    return judge(Study.model_validate(values), CELLS, "demo")


def p_values(found: ClaimResult) -> list[tuple[float, float]]:
    """Return p and corrected p of each test."""
    known = [test.difference for test in found.tests]
    return [(each.p, each.p_adjusted) for each in known if each]  # type: ignore[misc]


def test_a_claims_p_is_its_tests_largest_and_holm_is_over_the_claims() -> None:
    sure = above("4x/a", "4x/b")
    less = above("4x/a", "4x/b", "ruler", margin=1)
    first, second, third = judged([sure], [sure, less], [above("4x/noise", "4x/b")])
    p_sure, p_less = p_values(second)[0][0], p_values(second)[1][0]
    assert p_sure < p_less < 0.05
    # In the order of their largest p: the first claim, the second, the third.
    assert p_values(first) == [(p_sure, pytest.approx(3 * p_sure))]
    floor = max(3 * p_sure, 2 * p_sure)
    assert p_values(second) == [(p_sure, pytest.approx(floor)), (p_less, pytest.approx(2 * p_less))]
    p_noise, adjusted = p_values(third)[0]
    assert adjusted == pytest.approx(max(2 * p_less, p_noise))


def test_a_contradiction_is_corrected_for_all_tests() -> None:
    wrong = above("4x/a", "4x/b", "ruler")
    found = judged([above("4x/a", "4x/b"), wrong], [above("4x/noise", "4x/b")] * 4)
    p, adjusted = p_values(found[0])[1]
    assert adjusted == pytest.approx(min(1.0, 6 * p))
    assert found[0].verdict == ("does not hold" if 6 * p < 0.05 else "not decided")


def test_other_models_of_a_run_are_compared_too() -> None:
    found = verdict(above("4x/a", "4x/a:rescaled", "similarity"))
    assert found.verdict == "holds"
    assert found.tests[0].text == "similarity of a (4x) above the rescaled model of a (4x)"
    assert verdict(above("4x/a:original", "4x/a", "similarity")).verdict == "holds"


def test_one_seed_or_a_missing_value_is_not_testable() -> None:
    single = {key: cells[:1] for key, cells in CELLS.items()}
    assert verdict(above("4x/a", "4x/b"), cells=single).verdict == "not testable"
    missing = {**CELLS, ("4x", "b"): row([70.0] * 5, [None] * 5)}
    found = verdict(above("4x/a", "4x/b", "ruler"), cells=missing)
    assert found.verdict == "not testable"
    assert found.tests[0].difference is None
    unfinished = {**CELLS, ("4x", "b"): []}
    assert verdict(above("4x/a", "4x/b"), cells=unfinished).verdict == "not testable"


def rising(sign: float) -> dict[tuple[str, str], list[Cell]]:
    """Return four variants whose retention rises or falls with similarity, but for one swap."""
    found = {}
    for place, name in enumerate("abcd"):
        values = [70 + sign * place + (1.5 if seed == 2 and place == 0 else 0) for seed in SEEDS]
        found["4x", name] = row(values, [50.0] * 5, 0.90 + 0.02 * place)
    return found


def test_a_correlation_is_of_each_seed_over_the_variants() -> None:
    test = {"measure": "short_retention", "rises_with": "similarity", "panel": "4x"}
    found = verdict(test, cells=rising(1))
    assert found.verdict == "holds"
    difference = found.tests[0].difference
    assert difference is not None
    # In seed 2 the ranks are 2, 1, 3, 4.
    assert difference.mean == pytest.approx((4 * 1.0 + 0.8) / 5)
    assert verdict(test, cells=rising(-1)).verdict == "does not hold"


def test_saved_students_are_points_of_a_correlation() -> None:
    saved = {10: scores(50.0, 1.0, 0.5), 20: scores(60.0, 1.0, 0.6)}
    cells = {("4x", "a"): [cell(s, scores(70.0 + s, 1.0, 0.9), saved=saved) for s in SEEDS]}
    test = {"measure": "short_retention", "rises_with": "similarity", "panel": "4x"}
    assert verdict(test, cells=cells).tests[0].difference.mean == 1.0  # type: ignore[union-attr]


def curve(middle: list[float], end: list[float]) -> dict[tuple[str, str], list[Cell]]:
    """Return a variant that starts at 60 and is saved at step 20."""
    return {
        ("4x", "v"): [
            cell(s, scores(end[s], 1.0, 0.9), saved={20: scores(middle[s], 1.0, 0.9)})
            for s in SEEDS
        ]
    }


def test_a_peak_lies_above_start_and_end() -> None:
    test = {"measure": "short_average", "peaks": "4x/v"}
    peaked = curve([75.0, 74.5, 75.5, 75.2, 74.8], [70.0, 70.4, 69.8, 70.1, 70.2])
    found = verdict(test, cells=peaked)
    assert found.verdict == "holds"
    difference = found.tests[0].difference
    assert difference is not None
    assert difference.mean == pytest.approx((5.0 + 4.1 + 5.7 + 5.1 + 4.6) / 5)
    risen = curve([70.0, 70.4, 69.8, 70.1, 70.2], [75.0, 74.5, 75.5, 75.2, 74.8])
    # The peak is the last step, so that the smaller difference is 0 for every seed.
    assert verdict(test, cells=risen).verdict == "not decided"


def test_a_seeds_own_values_do_not_choose_its_peak() -> None:
    # Seed 0 alone peaks in the middle; over the others the last step is the peak.
    cells = curve([80.0, 70.0, 70.0, 70.0, 70.0], [75.0, 75.0, 75.0, 75.0, 75.0])
    found = verdict({"measure": "short_average", "peaks": "4x/v"}, cells=cells)
    assert found.tests[0].difference is not None
    assert found.tests[0].difference.mean <= 0
