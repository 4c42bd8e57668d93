"""Packaged questions, unparsed answers and truncated prompts are shown beside the scores."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from comparing import compare, edited
from study import RULER, Study

from longred.config import EvaluationConfig
from longred.report.glossary import ruler_terms
from longred.report.page import evaluation_content, render
from longred.report.samples import Unit
from longred.report.scores import Comparison
from longred.report.tables import (
    dropped_lines,
    markdown_page,
    result_table,
    short_task_table,
    skipped_lines,
    truncated_lines,
    units_table,
    unparsed_lines,
)


@pytest.fixture(scope="module")
def comparison(study: Study) -> Comparison:
    return compare(study.scores)


def with_questions(study: Study, folder: Path, entry: dict[str, Any]) -> Comparison:
    """Compare the study's models with one more RULER task, qa_1, on which all score 50."""
    folders = {}
    for name, place in study.scores.items():
        ruler = json.loads((place / "scores.json").read_text())["ruler"]
        for tasks in ruler.values():
            tasks["qa_1"] = {**tasks["niah_single_1"], "score": 50.0, **entry}
        folders[name] = edited(study, folder, name, {"ruler": ruler})[name]
    return compare(folders)


def test_packaged_questions_are_shown_and_count_in_no_average(
    study: Study, comparison: Comparison, tmp_path: Path
) -> None:
    found = with_questions(study, tmp_path, {"builtin": True})
    for name, model in found.models.items():
        assert model["ruler"] == comparison.models[name]["ruler"]
        assert model["overall"] == comparison.models[name]["overall"]
        assert model["interval"] == comparison.models[name]["interval"]
    lines = dict(dropped_lines(found))
    assert "packaged question set" in lines["qa_1 (built-in) at 512 tokens"]
    assert "evaluation.ruler.count_builtin" in lines["qa_1 (built-in) at 512 tokens"]
    rows = {row[0]: row for row in units_table(found, found.long_units()).rows}
    assert rows["qa_1 (built-in) at 512 tokens (dropped)"][3].startswith("50.0 [")
    assert "qa_1 (built-in)" in ruler_terms(found)


def test_the_page_of_an_evaluation_says_what_counts_in_no_average(
    study: Study, tmp_path: Path
) -> None:
    config = EvaluationConfig(original_window=256, target_window=512)
    sources = dict.fromkeys(study.scores, "a folder")
    samples = tmp_path / "samples"
    shutil.copytree(study.folders["samples"], samples)
    for path in (samples / "ruler").glob("niah_single_1-*"):
        shutil.copy(path, path.with_name(path.name.replace("niah_single_1", "qa_1")))
    found = with_questions(study, tmp_path, {"builtin": True})
    content = evaluation_content(config, study.scores, samples, found, sources)
    assert "qa_1 (built-in) at 512 tokens" in dict(content["dropped"])
    assert content["facts"]["similarity to"] == "original"


def test_packaged_questions_count_where_they_are_meant_to(study: Study, tmp_path: Path) -> None:
    for entry, mark in (({"builtin": True, "counts": True}, " (built-in)"), ({}, "")):
        found = with_questions(study, tmp_path / f"marked{mark}", entry)
        assert found.ruler_tasks[512] == [*RULER, "qa_1"]
        units = [f"{task}@512" for task in RULER]
        expected = (2 * study.average("cpt", units) + 50) / 3
        assert found.models["cpt"]["ruler"]["512"]["average"] == pytest.approx(expected)
        assert found.label(Unit("qa_1", 512)) == f"qa_1{mark} at 512 tokens"
        assert found.label(Unit("cloze")) == "cloze"


def test_answers_that_hold_nothing_to_score_are_shown_with_task_and_model(
    study: Study, tmp_path: Path
) -> None:
    counts = {"original": 0, "rescaled": 7, "cpt": 0, "longred-c": 12}
    folders = {}
    for name, number in counts.items():
        short = json.loads((study.scores[name] / "scores.json").read_text())["short"]
        short["key_recall"]["unparsed"] = number
        folders[name] = edited(study, tmp_path, name, {"short": short})[name]
    found = compare(folders)
    assert (found.models["rescaled"]["unparsed"], found.models["rescaled"]["generated"]) == (7, 120)
    table = result_table(found)
    place = table.header.index("unparsed")
    assert [row[place] for row in table.rows] == ["0", "7 of 120", "0", "12 of 120"]
    assert unparsed_lines(found) == [
        ("key_recall", "rescaled 7 of 120, longred-c 12 of 120"),
    ]
    page = markdown_page(found)
    assert "- key_recall: rescaled 7 of 120, longred-c 12 of 120\n" in page
    (row,) = (row for row in short_task_table(found).rows if row[0] == "key_recall")
    assert row[-1].endswith("] (12 unparsed)")
    assert "unparsed" not in row[-2]


def test_without_generated_answers_none_can_be_unparsed(comparison: Comparison) -> None:
    assert "unparsed" not in result_table(comparison).header
    assert "nothing to score:" not in markdown_page(comparison)


def with_short(study: Study, folder: Path, changes: dict[str, dict[str, Any]]) -> Comparison:
    """Compare the study's models; `changes` holds a model's changes by task, for all as "all"."""
    folders = {}
    for name, place in study.scores.items():
        short = json.loads((place / "scores.json").read_text())["short"]
        for task, change in {**changes["all"], **changes.get(name, {})}.items():
            short[task].update(change)
        folders[name] = edited(study, folder, name, {"short": short})[name]
    return compare(folders)


def shown_page(study: Study, samples: Path, found: Comparison) -> str:
    config = EvaluationConfig(original_window=256, target_window=512)
    sources = dict.fromkeys(study.scores, "a folder")
    return render(evaluation_content(config, study.scores, samples, found, sources), [])


def test_truncated_prompts_are_shown_by_capacity_and_model(
    study: Study, comparison: Comparison, tmp_path: Path
) -> None:
    same = {"cloze": {"truncated": 3}, "key_recall": {"truncated": 120}}
    changes = {"all": same, "cpt": {"cloze": {"truncated": 5}}}
    found = with_short(study, tmp_path, changes)
    others = ", ".join(name for name in found.raw if name != "cpt")
    counts = (
        f"{others}: cloze 3 of 120, key_recall 120 of 120; cpt: cloze 5 of 120, key_recall 120 "
        "of 120"
    )
    assert truncated_lines(found) == [("reading", counts)]
    heading = "lost their beginning, since they are longer than the window:"
    assert f"{heading}\n\n- reading: {counts}\n" in markdown_page(found)
    (row,) = (row for row in short_task_table(found).rows if row[0] == "cloze")
    assert row[-1].endswith("] (3 truncated)")
    html = shown_page(study, study.folders["samples"], found)
    assert "<h3>Prompts that lost their beginning</h3>" in html
    assert f"<strong>reading</strong>: {counts}" in html

    assert truncated_lines(comparison) == []
    assert "lost their beginning" not in markdown_page(comparison)
    html = shown_page(study, study.folders["samples"], comparison)
    assert "lost their beginning" not in html
    assert "Not evaluated" not in html


def test_a_skipped_task_is_shown_with_its_reason(study: Study, tmp_path: Path) -> None:
    skipped = {"score": None, "reason": "cloze: its data\nare not available", "interval": None}
    found = with_short(study, tmp_path, {"all": {"cloze": skipped}})
    assert skipped_lines(found) == [("cloze", "its data are not available")]
    assert "Not evaluated:\n\n- cloze: its data are not available\n" in markdown_page(found)
    # Samples that could not be frozen are no files.
    samples = shutil.copytree(study.folders["samples"], tmp_path / "samples")
    (samples / "short" / "cloze.jsonl").unlink()
    html = shown_page(study, samples, found)
    assert "<li><strong>cloze</strong>: its data are not available</li>" in html
