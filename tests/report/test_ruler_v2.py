"""RULER v2 in reports: an average of its own over all twelve tasks, or the reason for none."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import compare, edited
from study import Study, write_lines

from longred.config.evaluation import RULER_V2_TASKS
from longred.evaluation.intervals import Averages, Draws
from longred.evaluation.results import summary
from longred.evaluation.ruler.tasks import TASKS
from longred.report import glossary
from longred.report.figures import FIGURES, draw_all
from longred.report.measures import changes
from longred.report.names import by_importance
from longred.report.plots import FigureData
from longred.report.samples import Unit, frozen_prompts
from longred.report.scores import Comparison, model_metrics
from longred.report.tables import (
    dropped_lines,
    markdown_page,
    result_table,
    retention_table,
    summary_table,
    units_table,
)
from longred.store.artifacts import write_json

MODELS = ("original", "cpt", "longred-c")
LENGTHS = (256, 1024)
NUM_SAMPLES = 30


def drawn_scores(model: str, task: str, length: int) -> list[float]:
    """Return scores that differ between models, tasks and lengths; some are below chance."""
    rng = random.Random(f"{model} {task} {length}")
    mean = 5 * len(model) - 30 + 3 * RULER_V2_TASKS.index(task) - 10 * LENGTHS.index(length)
    return [min(100.0, max(0.0, rng.gauss(mean, 20.0))) for _ in range(NUM_SAMPLES)]


def with_v2(
    study: Study,
    folder: Path,
    *,
    tasks: tuple[str, ...] = RULER_V2_TASKS,
    entry: dict[str, Any] | None = None,
) -> dict[str, Path]:
    """Return the study's models with tasks of RULER v2; `entry` is added to those on documents."""
    folders = {}
    for name in MODELS:
        scores = json.loads((study.scores[name] / "scores.json").read_text())
        place = edited(study, folder, name, {})[name]
        for task in tasks:
            for length in LENGTHS:
                lines = [
                    {"id": f"{task}-{i}", "score": score}
                    for i, score in enumerate(drawn_scores(name, task, length))
                ]
                write_lines(Unit(task, length).path(place), lines)
                added = (entry or {}) if "qa" in task else {}
                found = summary(lines, TASKS[task].chance) | added
                scores["ruler"][str(length)][task] = found
        write_json(place / "scores.json", scores)
        folders[name] = place
    return folders


@pytest.fixture(scope="module")
def folders(study: Study, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return with_v2(study, tmp_path_factory.mktemp("v2"))


@pytest.fixture(scope="module")
def comparison(folders: dict[str, Path]) -> Comparison:
    return compare(folders)


@pytest.fixture(scope="module")
def without(study: Study) -> Comparison:
    return compare({name: study.scores[name] for name in MODELS})


def mean_of_tasks(model: str, length: int) -> float:
    """Return the plain mean of the twelve means."""
    total = 0.0
    for task in RULER_V2_TASKS:
        scores = drawn_scores(model, task, length)
        total += sum(scores) / len(scores)
    return total / 12


def draws(model: str, length: int) -> list[Draws]:
    shares = np.full(NUM_SAMPLES, 1 / NUM_SAMPLES)
    each = (drawn_scores(model, task, length) for task in RULER_V2_TASKS)
    return [Draws(np.array([scores]), shares) for scores in each]


def test_the_average_is_the_plain_mean_of_twelve_with_its_interval(comparison: Comparison) -> None:
    for name in MODELS:
        model = comparison.models[name]
        assert set(model["ruler_v2"]) == {"256", "1024"}
        for length in LENGTHS:
            found = model["ruler_v2"][str(length)]
            assert set(found) == {*RULER_V2_TASKS, "average"}
            assert found["average"] == pytest.approx(mean_of_tasks(name, length))
            ends = [float(end) for end in Averages(draws(name, length)).mean()]
            assert model["interval"]["ruler_v2"][str(length)] == pytest.approx(ends)


def test_no_other_average_changes_and_no_task_is_dropped(
    comparison: Comparison, without: Comparison
) -> None:
    original = comparison.raw["original"]["ruler"]["256"]
    # These would be dropped if they were tasks of RULER.
    assert any(original[task]["score"] < original[task]["chance"] + 10 for task in RULER_V2_TASKS)
    assert comparison.dropped == without.dropped
    assert comparison.ruler_tasks == without.ruler_tasks
    for name in MODELS:
        for key in ("short", "capacities", "ruler", "overall", "dropped"):
            assert comparison.models[name][key] == without.models[name][key]
        assert without.models[name]["ruler_v2"] == {}
    assert "RULER v2" not in markdown_page(without)


def test_retention_and_differences_are_those_of_rulers_lengths(comparison: Comparison) -> None:
    for name in MODELS:
        kept = comparison.models[name]["retention"]["ruler_v2"]
        ratio = 100 * mean_of_tasks(name, 256) / mean_of_tasks("original", 256)
        assert kept["256"] == pytest.approx(ratio)
        assert kept["1024"] is None
    low, high = comparison.models["cpt"]["retention_interval"]["ruler_v2"]["256"]
    assert low < comparison.models["cpt"]["retention"]["ruler_v2"]["256"] < high
    points = {each.measure: each.points for each in comparison.differences}
    for length, label in ((256, "RULER v2 at 256 tokens"), (1024, "RULER v2 at 1,024 tokens")):
        expected = mean_of_tasks("longred-c", length) - mean_of_tasks("cpt", length)
        assert points[label] == pytest.approx(expected)


def test_metrics_and_their_changes_have_the_same_keys(
    comparison: Comparison, folders: dict[str, Path]
) -> None:
    ours, theirs = (model_metrics(comparison, name) for name in ("longred-c", "cpt"))
    assert ours[1024]["ruler_v2/average"] == pytest.approx(mean_of_tasks("longred-c", 1024))
    assert "retention/ruler_v2" in ours[256]
    assert "retention/ruler_v2" not in ours[1024]
    found = changes(comparison, [folders["longred-c"], folders["cpt"]])
    for key in ("ruler_v2/average", "ruler/v2_qa_hard", "ruler/average"):
        points, ends = found[key, 256]
        assert points == pytest.approx(ours[256][key] - theirs[256][key])
        assert ends[0] < points < ends[1]


def test_tables_have_a_column_for_each_length_behind_rulers(comparison: Comparison) -> None:
    table = result_table(comparison)
    columns = ["RULER 256", "RULER 512", "RULER 1,024", "RULER v2 256", "RULER v2 1,024"]
    place = table.header.index("RULER 256")
    assert table.header[place : place + 5] == columns
    assert table.rows[1][place + 4] == f"{mean_of_tasks('cpt', 1024):.1f}"
    assert retention_table(comparison).header[-5:] == columns
    order = [name for name in by_importance(table.header) if name.startswith("RULER")]
    assert order == [*columns[2::-1], *columns[:2:-1]]
    assert list(glossary.column_terms(columns)) == ["RULER", "RULER v2"]
    assert "RULER v2 has an average of its own" in markdown_page(comparison)
    tasks = {row[0]: row for row in units_table(comparison, comparison.long_units()).rows}
    assert tasks["v2_mk_niah_hard at 256 tokens"][1:3] == ["30", "25.0"]
    assert "v2_mk_niah_hard" in glossary.ruler_terms(comparison)


def test_the_page_shows_intervals_of_the_averages_at_the_longest_length(
    comparison: Comparison,
) -> None:
    table = summary_table(comparison)
    for row, model in zip(table.rows, comparison.models.values(), strict=True):
        cells = dict(zip(table.header, row, strict=True))
        for column, score, ends in (
            ("short average", model["short"]["average"], model["interval"]["short"]),
            ("RULER 1,024", model["ruler"]["1024"]["average"], model["interval"]["ruler"]["1024"]),
            (
                "RULER v2 1,024",
                model["ruler_v2"]["1024"]["average"],
                model["interval"]["ruler_v2"]["1024"],
            ),
        ):
            assert cells[column] == f"{score:.1f} [{ends[0]:.1f}, {ends[1]:.1f}]"
        assert "[" not in cells["RULER 256"] + cells["RULER v2 256"] + cells["average"]


def test_the_figure_is_drawn_where_there_is_an_average(
    comparison: Comparison, without: Comparison
) -> None:
    data = FigureData(comparison=comparison, original_window=256)
    (plot,) = draw_all(["ruler-v2"], data)
    assert plot.title == "RULER v2 by length"
    assert plot.table.rows[0][0] == "v2_mk_niah_basic at 256 tokens"
    assert len(plot.table.rows) == 24
    assert draw_all(["ruler-v2"], replace(data, comparison=without)) == []
    (kept,) = draw_all(["retention"], data)
    assert "RULER v2 256" in kept.table.header
    assert "ruler-v2" in FIGURES


def test_packaged_questions_leave_no_average_unless_they_count(
    study: Study, tmp_path: Path
) -> None:
    found = compare(with_v2(study, tmp_path / "a", entry={"builtin": True}))
    assert found.v2_lengths == []
    assert not any("RULER v2" in name for name in result_table(found).header)
    reason = dict(dropped_lines(found))["RULER v2 at 256 and 1,024 tokens"]
    assert "packaged question set" in reason
    assert reason.endswith("v2_qa_basic, v2_qa_easy, v2_qa_medium, v2_qa_hard")
    assert "without a score" not in reason
    assert f"- RULER v2 at 256 and 1,024 tokens: {reason}.\n" in markdown_page(found)
    rows = {row[0] for row in units_table(found, found.long_units()).rows}
    assert "v2_qa_hard (built-in) at 256 tokens" in rows
    counted = compare(with_v2(study, tmp_path / "b", entry={"builtin": True, "counts": True}))
    average = counted.models["cpt"]["ruler_v2"]["256"]["average"]
    assert average == pytest.approx(mean_of_tasks("cpt", 256))


def test_fewer_tasks_have_no_average_and_stay_visible(study: Study, tmp_path: Path) -> None:
    found = compare(with_v2(study, tmp_path, tasks=RULER_V2_TASKS[:10]))
    assert found.models["cpt"]["ruler_v2"] == {}
    reason = dict(dropped_lines(found))["RULER v2 at 256 and 1,024 tokens"]
    assert reason == "its average is of all 12 tasks; without a score: v2_qa_medium, v2_qa_hard"
    rows = {row[0] for row in units_table(found, found.long_units()).rows}
    assert "v2_mk_niah_easy at 1,024 tokens" in rows
    scores = drawn_scores("cpt", "v2_mk_niah_easy", 1024)
    known = model_metrics(found, "cpt")[1024]["ruler/v2_mk_niah_easy"]
    assert known == pytest.approx(sum(scores) / len(scores))


def test_a_model_that_lacks_a_score_has_no_average(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    scores = json.loads((folders["cpt"] / "scores.json").read_text())
    del scores["ruler"]["256"]["v2_qa_easy"]
    (tmp_path / "cpt").mkdir()
    write_json(tmp_path / "cpt/scores.json", scores)
    found = compare({**folders, "cpt": tmp_path / "cpt"})
    cpt = found.models["cpt"]["ruler_v2"]
    assert cpt["256"]["average"] is None
    assert cpt["1024"]["average"] == pytest.approx(mean_of_tasks("cpt", 1024))
    assert found.models["longred-c"]["ruler_v2"]["256"]["average"] is not None
    assert found.models["cpt"]["retention"]["ruler_v2"]["256"] is None


def test_an_evaluation_of_v2_alone_has_no_columns_of_ruler(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    scores = json.loads((folders["cpt"] / "scores.json").read_text())
    for tasks in scores["ruler"].values():
        for task in [task for task in tasks if task not in RULER_V2_TASKS]:
            del tasks[task]
    write_json(tmp_path / "scores.json", scores)
    found = compare({"cpt": tmp_path})
    columns = [name for name in result_table(found).header if name.startswith("RULER")]
    assert columns == ["RULER v2 256", "RULER v2 1,024"]


def test_prompts_are_joined_as_they_are_asked(tmp_path: Path) -> None:
    lines = [
        {"id": "a", "input": "Find it.\n", "prefix": "Index:"},
        {"id": "b", "input": "Find it.", "prefix": "Index:"},
        {"id": "c", "input": "Find it."},
    ]
    write_lines(tmp_path / "ruler/v2_qa_basic-256.jsonl", lines)
    assert frozen_prompts(tmp_path, Unit("v2_qa_basic", 256)) == {
        "a": "Find it.\nIndex:",
        "b": "Find it. Index:",
        "c": "Find it.",
    }
