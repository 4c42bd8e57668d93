"""The glossary knows all methods and packaged tasks, and shows only what is on a page."""

from dataclasses import replace
from pathlib import Path

import pytest
from study import Study

from longred.attention.reindexed import SCHEMES
from longred.config import load_recipe
from longred.config.evaluation import RULER_TASKS
from longred.evaluation.ruler.tasks import TASKS
from longred.evaluation.suites import FOLDER, load_suite
from longred.method.methods import METHODS
from longred.report import glossary
from longred.report.compare import Row
from longred.report.inputs import made_by
from longred.report.names import metric_name
from longred.report.scores import collect
from longred.report.tables import markdown_page, result_table, short_task_table, summary_table
from longred.runs.record import RunRecord, StageRecord


def test_every_method_and_reference_has_a_text() -> None:
    assert set(glossary.MODELS) == {"original", "rescaled", *SCHEMES, *METHODS}


def test_every_packaged_task_has_a_text() -> None:
    assert set(glossary.RULER_TASKS) == set(TASKS) >= set(RULER_TASKS)
    suites = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    names = {task.name for suite in suites for task in load_suite(suite)}
    assert len(names) > 20
    assert [name for name in sorted(names) if not glossary.task_text(name)] == []
    assert glossary.task_text("my_own_task") == ""


def test_only_what_is_named_is_explained() -> None:
    assert list(glossary.model_terms(["cpt", "a-folder", "original"])) == ["cpt", "original"]
    columns = ["cloze", "short average", "RULER 256", "RULER 1,024", "nats/token"]
    assert list(glossary.column_terms(columns)) == ["short average", "RULER", "nats/token"]
    assert "held out from the run's own data" in glossary.column_terms(columns)["nats/token"]


def test_measures_of_saved_students_are_named_by_their_step() -> None:
    assert metric_name("by_step/short_average", 30) == "short average after step 30"
    assert metric_name("by_step/similarity") == "similarity after step 0"
    assert Row("by_step/similarity @ 30", [0.99, 0.98]).digits == 4
    assert Row("by_step/ruler @ 30", [99.0, 98.0]).digits == 1


def test_names_break_after_underscores_only_and_stay_escaped() -> None:
    assert glossary.breakable("key_<b> longred-c") == (
        'key_<wbr>&lt;b&gt; <span class="word">longred-c</span>'
    )


def test_the_page_splits_the_result_table_into_models_and_tasks(study: Study) -> None:
    models = {name: study.scores[name] for name in ("original", "cpt")}
    comparison = collect(models, original_window=256, min_points_above_chance=10.0)
    whole, summary = result_table(comparison), summary_table(comparison)
    assert "loss on text held out from the run's own data." in markdown_page(comparison)
    assert "loss on text held out from a.txt." in markdown_page(replace(comparison, text="a.txt"))
    tasks = short_task_table(comparison)
    assert [name for name in whole.header if name not in summary.header] == comparison.short_tasks
    assert tasks.header[-2:] == ["original", "cpt"]
    assert [row[0] for row in tasks.rows] == comparison.short_tasks
    for row in tasks.rows:
        place = whole.header.index(row[0])
        scores = [cell.partition(" [")[0] for cell in row[-2:]]
        assert scores == [cells[place] for cells in whole.rows]


@pytest.mark.parametrize(
    ("path", "revision", "folder", "words"),
    [
        ("demo", None, "longred/demo/model", "demo, the small model inside longred"),
        ("/data/mine", None, "/data/mine", "/data/mine"),
        ("/data/mine", "f" * 40, "/data/mine", "/data/mine"),
        ("a/mine.gguf", "f" * 40, "/cache/artifacts/model-0abc", "a/mine.gguf"),
        ("owner/model", "f" * 40, "/cache/snapshots/" + "f" * 40, "owner/model at " + "f" * 40),
        ("owner/model", None, "/cache/snapshots/0abc", "owner/model at 0abc"),
    ],
)
def test_a_run_names_its_model_and_commit(
    path: str, revision: str | None, folder: str, words: str
) -> None:
    config = load_recipe("demo").model_dump(mode="json")
    config["model"] = {"path": path, "revision": revision}
    record = RunRecord("20260101-101500-demo-a1b2", "demo", [], config, "d", started=1767262500.0)
    record.stages = [StageRecord("model", "model", "skipped", path=str(Path(folder)))]
    found = made_by(record)
    assert (found.run, found.date, found.model) == (record.id, "2026-01-01 10:15 UTC", words)
