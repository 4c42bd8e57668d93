"""Comparing runs: settings first, then scores, from the report or from the evaluations."""

import copy
import json
from pathlib import Path

import pytest
from study import make_study
from typer.testing import CliRunner

from longred import __version__
from longred.cli import app
from longred.cli.compare import changes
from longred.config import load_recipe
from longred.errors import ConfigError
from longred.report.compare import compare, config_differences, read_results, read_scores
from longred.report.glossary import task_text
from longred.report.scores import collect
from longred.report.text_table import Table
from longred.runs.record import RunRecord, StageRecord
from longred.store.artifacts import write_json
from longred.store.journal import Journal


def recorded(
    folder: Path, run_id: str, overrides: list[str], scores: dict[str, dict[str, float]]
) -> RunRecord:
    """Return a run whose report holds these scores: model → key (`key@step`) → value."""
    report = folder / f"report-{run_id}"
    report.mkdir(parents=True)
    journal = Journal(report / "metrics.jsonl")
    for model, values in scores.items():
        for key, value in values.items():
            name, _, step = key.partition("@")
            journal.append({f"{model}/{name}": value}, step=int(step or 0))
    journal.close()
    rows = [[model, f"{values['short/cloze']:.1f}"] for model, values in scores.items()]
    (report / "table.md").write_text(Table(["model", "cloze"], rows).markdown() + "\nA note.\n")
    stages = [
        StageRecord("evaluation/samples", "evaluation", "ran", digest="aa"),
        *(StageRecord(f"evaluation/{model}", "evaluation", "ran") for model in scores),
        StageRecord("report", "report", "ran", path=str(report)),
    ]
    config = load_recipe("demo", overrides)
    return RunRecord(
        id=run_id,
        recipe="demo",
        overrides=overrides,
        config=config.model_dump(mode="json"),
        digest="d",
        status="finished",
        stages=stages,
    )


@pytest.fixture
def runs(tmp_path: Path) -> list[RunRecord]:
    """Two runs that differ in method and seed; the original scored the same in both."""
    original = {"short/cloze": 70.0, "ruler/average@256": 96.0}
    first = recorded(
        tmp_path,
        "20260101-000000-demo-aaaa",
        ["training.baselines=[]"],
        {
            "original": original,
            "longred-c": {"short/cloze": 68.0, "ruler/average@256": 95.0, "similarity/last": 0.98},
        },
    )
    second = recorded(
        tmp_path,
        "20260101-000001-demo-bbbb",
        ["training.baselines=[]", "training.method=cpt", "seed=3"],
        {
            "original": dict(original),
            "cpt": {"short/cloze": 61.5, "ruler/average@512": 80.0, "similarity/last": 0.95},
        },
    )
    return [first, second]


def test_settings_are_compared_where_they_are_set_and_not_where_they_are_kept(
    runs: list[RunRecord],
) -> None:
    runs[1].config["store"]["path"] = "elsewhere"
    found = {each.key: each.values for each in config_differences([run.config for run in runs])}
    assert found == {"seed": [0, 3], "training.method": ["longred-c", "cpt"]}


def test_students_are_compared_whatever_their_methods_and_others_by_name(
    runs: list[RunRecord],
) -> None:
    comparison = compare(runs)
    assert comparison.same == ["original"]
    assert not comparison.questions_differ
    student = comparison.models[0]
    assert student.name == "student (longred-c, cpt)"
    measures = {measure.key: measure for measure in student.measures}
    assert measures["short/cloze"].values == [68.0, 61.5]
    assert measures["short/cloze"].changes() == [-6.5]
    assert measures["ruler/average @ 256"].values == [95.0, None]
    assert measures["ruler/average @ 256"].changes() == [None]
    assert measures["ruler/average @ 512"].changes() == [None]
    assert {model.name for model in comparison.models[1:]} == {"longred-c", "cpt"}


def test_without_a_report_scores_come_from_the_evaluations(
    runs: list[RunRecord], tmp_path: Path
) -> None:
    study = make_study(tmp_path)
    run = runs[0]
    run.stages = [
        StageRecord(f"evaluation/{model}", "evaluation", "ran", path=str(folder))
        for model, folder in study.scores.items()
    ]
    run.stages.append(StageRecord("report", "report", "stale"))
    scores = read_scores(run)
    assert set(scores) == set(study.scores)
    raw = json.loads((study.scores["original"] / "scores.json").read_text())
    task = next(iter(scores["original"].keys() & {f"short/{name}" for name in raw["short"]}))
    assert scores["original"][task] == pytest.approx(raw["short"][task[6:]]["score"])
    results = read_results(run)
    assert results is not None
    assert [row[0] for row in results.rows] == list(study.scores)
    assert "RULER 1,024" in results.header
    run.stages = []
    assert read_scores(run) == {}
    assert read_results(run) is None


def test_results_begin_the_comparison_and_equal_rows_are_shown_once(runs: list[RunRecord]) -> None:
    results = compare(runs).results
    assert results == Table(
        ["model", "cloze"], [["AB original", "70.0"], ["A longred-c", "68.0"], ["B cpt", "61.5"]]
    )


def test_show_prints_the_scores_of_an_evaluation_alone_and_that_the_report_is_stale(
    runs: list[RunRecord], tmp_path: Path
) -> None:
    study, run = make_study(tmp_path), runs[0]
    run.stages = [
        StageRecord(f"evaluation/{model}", "evaluation", "ran", path=str(folder))
        for model, folder in study.scores.items()
    ]
    run.stages.append(StageRecord("report", "report", "stale"))
    (tmp_path / "store/runs" / run.id).mkdir(parents=True)
    run.save(tmp_path / "store/runs")
    shown = CliRunner().invoke(app, ["show", run.id, "--store", str(tmp_path / "store")])
    assert shown.exit_code == 0, shown.output
    assert "| longred-c | " in shown.stdout
    assert "RULER 1,024" in shown.stdout
    assert f"report   is stale: these scores are newer; `longred run {run.id} --only report`" in (
        shown.stdout
    )


def test_other_questions_are_pointed_out(runs: list[RunRecord]) -> None:
    other = copy.deepcopy(runs[1])
    other.stages[0].digest = "bb"
    assert compare([runs[0], other]).questions_differ


@pytest.mark.parametrize("number", [1, 3])
def test_less_than_two_runs_or_one_twice_is_refused(runs: list[RunRecord], number: int) -> None:
    wanted = [runs[0]] if number == 1 else [runs[0], runs[1], runs[0]]
    with pytest.raises(ConfigError, match="2 to 26 different runs"):
        compare(wanted)


def test_the_verb_prints_a_table_a_page_and_json(runs: list[RunRecord], tmp_path: Path) -> None:
    store = tmp_path / "store"
    for run in runs:
        (store / "runs" / run.id).mkdir(parents=True)
        run.save(store / "runs")
    ids = [runs[0].id, "latest", "--store", str(store)]
    table = CliRunner().invoke(app, ["compare", *ids])
    assert table.exit_code == 0, table.output
    lines = [line.split() for line in table.stdout.splitlines()]
    assert ["seed", "0", "3"] in lines
    assert ["cloze", "68.0", "61.5", "-6.5"] in lines
    assert ["similarity", "0.9800", "0.9500", "-0.0300"] in lines
    text = table.stdout
    places = ["| AB original | 70.0 |", "Settings that differ", "student (longred-c, cpt)"]
    assert sorted(places, key=text.index) == places
    machine = CliRunner().invoke(app, ["compare", *ids, "--json"])
    value = json.loads(machine.stdout)
    assert [run["id"] for run in value["runs"]] == [run.id for run in runs]
    assert value["config"]["seed"] == [0, 3]
    row = value["scores"]["student (longred-c, cpt)"]["short/cloze"]
    assert row == {"values": [68.0, 61.5], "differences": [-6.5], "intervals": [None]}
    runs[1].overrides.append("report.title=<script>alert(1)</script>")
    runs[1].save(store / "runs")
    page = tmp_path / "pages" / "comparison.html"
    written = CliRunner().invoke(app, ["compare", *ids, "--html", str(page)])
    assert (written.exit_code, written.stdout) == (0, "")
    html = page.read_text()
    assert "-6.5" in html
    assert "training.method" in html
    assert "<script" not in html
    assert "<td>longred-c</td><td>cpt</td>" in html
    assert "Extended by continual pre-training on long text alone" in html
    assert "choose the next word of a passage" in html
    assert "demo, the small model inside longred" in html
    assert f"longred {__version__}" in html


def evaluated_run(record: RunRecord, folders: dict[str, Path]) -> RunRecord:
    """Return a run with evaluations of these models and no report."""
    record.stages = [StageRecord("evaluation/samples", "evaluation", "ran", digest="aa")]
    for name, path in folders.items():
        stage = StageRecord(f"evaluation/{name}", "evaluation", "ran", path=str(path))
        record.stages.append(stage)
    return record


def test_differences_of_scores_on_the_same_samples_have_intervals(
    runs: list[RunRecord], tmp_path: Path
) -> None:
    study = make_study(tmp_path)
    original = {"original": study.scores["original"]}
    first = evaluated_run(runs[0], {**original, "longred-c": study.scores["longred-c"]})
    second = evaluated_run(runs[1], {**original, "cpt": study.scores["cpt"]})
    comparison = compare([first, second])
    student = {row.key: row for row in comparison.models[0].measures}
    models = {name: study.scores[name] for name in ("original", "longred-c", "cpt")}
    direct = collect(
        models,
        original_window=256,
        min_points_above_chance=10.0,
        method="cpt",
        baselines=["longred-c"],
    )
    expected = {entry.measure: entry for entry in direct.differences}
    for key, measure in (
        ("capacity/short", "short average"),
        ("ruler/average @ 1,024", "RULER at 1,024 tokens"),
    ):
        row = student[key]
        assert row.changes() == [pytest.approx(expected[measure].points)]
        assert row.intervals == [pytest.approx(expected[measure].interval)]
    task = student["short/key_recall"]
    assert task.intervals[0] is not None
    assert task.intervals[0][0] < task.changes()[0] < task.intervals[0][1]
    assert student["retention/short"].intervals == [None]
    assert student["similarity/last"].intervals == [None]
    low, high = expected["short average"].interval or (0, 0)
    points = expected["short average"].points
    assert f"{points:+.1f} [{low:+.1f}, {high:+.1f}]" in changes(student["capacity/short"])
    assert compare([first, other_samples(second)]).models[0].measures[0].intervals == []


def other_samples(run: RunRecord) -> RunRecord:
    found = copy.deepcopy(run)
    found.stages[0].digest = "bb"
    return found


def test_an_average_over_other_tasks_has_no_interval(runs: list[RunRecord], tmp_path: Path) -> None:
    study = make_study(tmp_path)
    first = evaluated_run(runs[0], {n: study.scores[n] for n in ("original", "longred-c")})
    second = evaluated_run(runs[1], {n: study.scores[n] for n in ("original", "cpt")})
    # The second run drops more tasks, so its average is another one.
    second.config["report"]["min_points_above_chance"] = 60.0
    student = {row.key: row for row in compare([first, second]).models[0].measures}
    assert student["capacity/short"].intervals == [None]
    assert student["short/key_recall"].intervals != [None]


def test_packaged_questions_are_marked(runs: list[RunRecord], tmp_path: Path) -> None:
    for number, run in enumerate(runs):
        folder = tmp_path / f"evaluation-{number}"
        entry = {"score": 40.0 + number, "num_samples": 9, "chance": 0.0}
        ruler = {"256": {"qa_1": {**entry, "builtin": True, "counts": True}, "vt": entry}}
        folder.mkdir()
        write_json(folder / "scores.json", {"model": "original", "ruler": ruler})
        evaluated_run(run, {"original": folder})
    (original,) = (model for model in compare(runs).models if model.name == "original")
    found = {row.key: row.name for row in original.measures}
    assert found["ruler/qa_1 @ 256"] == "qa_1 (built-in) at 256"
    assert found["ruler/vt @ 256"] == "vt at 256"
    assert task_text("qa_1 (built-in)") == task_text("qa_1") != ""
