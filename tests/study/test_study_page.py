"""Tables, figures and page of a study: numbers as computed here, nothing external, escaped."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from longred.report.plots import look
from longred.store.artifacts import write_json
from longred.study import tables
from longred.study.figures import draw_panel
from longred.study.page import render, write
from longred.study.result import StudyResult, read_result
from tests.study.study_results import cell, claim, panel, result, row, scores

SHORTS = [75.0, 75.5, 74.5, 75.25, 74.75]
SAVED = {10: scores(60.0, 30.0, 0.95), 30: scores(77.0, 55.0, 0.97)}


@pytest.fixture(scope="module")
def study() -> StudyResult:
    saved = [cell(s, scores(v, 60.0, 0.98), saved=SAVED) for s, v in enumerate(SHORTS)]
    rows = {
        "longred-c": saved,
        "cpt": row([70.0, 70.5, 69.5, 70.25, 70.75], [20.0] * 5, 0.95),
        "single": row([71.0], [30.0], 0.96),
        "broken": row(SHORTS, [10.0, None, 12.0, 11.0, 10.0], 0.96),
        "cheap": row([72.0, 72.5, 71.5, 72.25, 71.75], [40.0] * 5, 0.97, flops=1e12),
    }
    verdicts = ("holds", "does not hold", "not decided", "not testable")
    claims = [claim(verdict, f"Claim that {verdict}.") for verdict in verdicts]
    claims.append(claim("holds", "Ours <b>is</b> better.", is_ours=True))
    return result([panel(rows, "longred-c", [10, 30, 60])], claims)


def cells_of(table: tables.Table, name: str) -> dict[str, str]:
    (found,) = [r for r in table.rows if name in r]
    return dict(zip(table.header, found, strict=True))


def test_the_published_table_has_mean_and_half_width(study: StudyResult) -> None:
    table = tables.paper_table(study.panels[0])
    assert table.header[:4] == ["window", "RoPE", "data", "method"]
    found = cells_of(table, "longred-c")
    # The deviation of these values is 0.3953, and t is 2.776: 2.776 x 0.3953 / sqrt(5) = 0.491.
    assert found["short avg"] == found["coding"] == "75.0 ± 0.5"
    assert found["RULER"] == "60.0 ± 0.0"
    assert cells_of(table, "single")["short avg"] == "71.0"
    assert cells_of(table, "broken")["RULER"] == "n/a"
    assert table.rows[0][:4] == ["256", "-", "-", "original"]


def test_tables_say_which_command_made_them_when_and_of_what(study: StudyResult) -> None:
    found = tables.markdown(study).splitlines()[0]
    assert found.endswith(
        "(`longred study demo`; 2026-12-01 00:00 UTC; 21 runs; seeds 0, 1, 2, 3, 4; x86_64 (cpu); "
        "artifact study-0123456789abcdef)."
    )
    assert "- **holds**: Claim that holds." in tables.markdown(study)
    assert "  - short average of a above b: +1.5 [+0.5, +2.5], p 0.020" in tables.markdown(study)
    part = tables.origin(replace(study, num_planned=25, digest=""))
    assert part.endswith("; 21 of 25 runs; seeds 0, 1, 2, 3, 4; x86_64 (cpu)).")


def test_differences_are_shown_with_interval_and_corrected_p(study: StudyResult) -> None:
    table = tables.difference_table(study.panels[0])
    names = [r[0] for r in table.rows]
    assert names == ["cpt", "single", "broken", "cheap"]
    found = cells_of(table, "cheap")
    # Every seed differs by exactly 3 points.
    assert found["short average"] == "-3.0 [-3.0, -3.0]"
    assert found["p"] == "< 0.001"
    assert cells_of(table, "single")["short average"] == "-4.0"
    assert cells_of(table, "single")["p"] == "n/a"


def test_costs_have_units_and_budgets_their_first_step(study: StudyResult) -> None:
    found = cells_of(tables.main_table(study.panels[0]), "cheap")
    assert (found["tokens"], found["FLOPs"], found["time"]) == ("491,520", "1 TFLOP", "82 s")
    budget = tables.budget_table(study.panels[0])
    assert budget is not None
    # At step 30 of 60, retention is 77 / 0.8 = 96.25 % and RULER 55.
    assert budget.rows == [["longred-c", "245,760 ± 0", "245,760 ± 0"]]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0 FLOP"), (5.4e12, "5.4 TFLOP"), (2e24, "2e+03 ZFLOP")]
)
def test_operations_are_shown_in_three_digits(value: float, text: str) -> None:
    assert tables.operations(value) == text


def test_the_page_is_one_escaped_file_with_all_verdicts(study: StudyResult) -> None:
    page = render(study, {panel.name: draw_panel(panel) for panel in study.panels})
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "Ours &lt;b&gt;is" in page
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert not re.findall(r"url\((?!#)", page)
    for verdict in ("holds", "does-not-hold", "not-decided", "not-testable"):
        assert f'badge {verdict}"' in page
    assert "longred study demo --only 4x/a,4x/b" in page
    assert "longred run demo seed=3" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_the_same_result_is_the_same_page(study: StudyResult, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(study, tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert {"index.html", "table.md"} <= {str(path) for path in files}
    assert len([path for path in files if path.suffix == ".svg"]) == 7
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_a_result_is_read_back_as_it_was_written(study: StudyResult, tmp_path: Path) -> None:
    write_json(tmp_path / "study.json", study.to_json())
    assert read_result(tmp_path) == study


def test_figures_without_data_are_left_out() -> None:
    alone = panel({"a": row([70.0, 71.0], [10.0, 11.0])}, "a")
    names = [plot.name for plot in draw_panel(alone)]
    assert names == ["4x-retention", "4x-ruler", "4x-drift", "4x-similarity"]


def test_sixteen_variants_look_different() -> None:
    names = ["original", "rescaled", "cpt", "longred-c", *(f"v{n}" for n in range(12))]
    looks = [look(name, names) for name in names]
    assert len({colour for colour, *_ in looks}) == len(names)
    assert len({marker for _, marker, *_ in looks}) == len(names)
    assert len({hatch for *_, hatch in looks[1:] if hatch}) >= len(names) - 3
