"""Every verb understands the same names of runs, models, artifacts and folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from longred.cli import app, resolve
from longred.cli.drift import _text
from longred.cli.evaluation import _name
from longred.errors import ConfigError, LongredError, MismatchError, PreflightError
from longred.runs.record import RunRecord, StageRecord, process_identity
from longred.store.artifacts import Store, write_json

OLD, NEW = "20261130-101500-demo-a1b2", "20261201-101500-demo-c3d4"
FAILED = "20261201-111500-demo-e5f6"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Two finished runs with data and two students each, and a later one that failed."""
    store = Store(tmp_path / "store")
    for number, run_id in enumerate((OLD, NEW)):
        stages = []
        names = ("data", "extension", "training/longred-c", "training/cpt")
        for place, name in enumerate(names):
            stage, digest = name.partition("/")[0], f"{number}{place}" * 8
            folder = store.artifacts / f"{stage}-{digest}"
            folder.mkdir(parents=True)
            (folder / ("index.json" if stage == "data" else "config.json")).write_text("{}")
            stages.append(StageRecord(name, stage, "ran", digest=digest, path=str(folder)))
        stages.append(StageRecord("model", "model", "ran", digest="aa", path=str(tmp_path)))
        save(store, run_id, "finished", stages)
    save(store, FAILED, "failed", [])
    monkeypatch.chdir(tmp_path)
    return store


def save(store: Store, run_id: str, status: str, stages: list[StageRecord]) -> RunRecord:
    config: dict[str, Any] = {
        "name": "demo",
        "tracking": {},
        "training": {"method": "longred-c"},
    }
    record = RunRecord(
        run_id, "demo", [], config, "d", status, process=process_identity(), stages=stages
    )
    (store.runs / run_id).mkdir(parents=True)
    record.save(store.runs)
    return record


@pytest.mark.parametrize(
    ("name", "folder", "label"),
    [
        ("latest", "training-" + "12" * 8, "longred-c"),
        ("latest/cpt", "training-" + "13" * 8, "cpt"),
        ("latest/rescaled", "extension-" + "11" * 8, "rescaled"),
        ("20261130", "training-" + "02" * 8, "longred-c"),
        (f"{OLD}/cpt", "training-" + "03" * 8, "cpt"),
        ("training-0303", "training-" + "03" * 8, "training-" + "03" * 8),
        ("extension-11", "extension-" + "11" * 8, "extension-" + "11" * 8),
    ],
)
def test_a_model_can_be_named_by_run_and_artifact(
    store: Store, name: str, folder: str, label: str
) -> None:
    found = resolve.name_model(store, name)
    assert (Path(found.path), found.label) == (store.artifacts / folder, label)


def test_a_model_can_be_named_by_folder_and_on_the_hub(store: Store, tmp_path: Path) -> None:
    assert resolve.name_model(store, "demo").path == "demo"
    (tmp_path / "mine").mkdir()
    assert resolve.name_model(store, "mine") == resolve.NamedModel("mine", None, "mine")
    commit = "a" * 40
    named = resolve.name_model(store, f"owner/model@{commit}")
    assert (named.path, named.revision, named.label) == ("owner/model", commit, "owner--model")
    assert resolve.name_model(store, "latest/original").path == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("latst", PreflightError, "did you mean latest?"),
        ("longred-c", PreflightError, f"did you mean {NEW}/longred-c?"),
        ("nothing-like-it", PreflightError, "give demo, latest, a run's id"),
        ("latest/cpd", ConfigError, "it has longred-c, cpt, original, rescaled"),
        ("20261201", ConfigError, "2 runs in"),
        ("20250101-101500-demo-a1b2", ConfigError, "no such run"),
        (FAILED, ConfigError, "it has none yet"),
        ("data-00", ConfigError, "is an artifact of data, not of training or extension"),
        ("training-ffff", ConfigError, "no such artifact"),
        ("training-1", ConfigError, "2 artifacts begin with it"),
    ],
)
def test_a_wrong_name_is_answered_with_what_was_tried(
    store: Store, name: str, error: type[LongredError], words: str
) -> None:
    with pytest.raises(error) as caught:
        resolve.name_model(store, name)
    assert words in str(caught.value)
    assert str(caught.value).startswith((f"{name}:", "run "))


def test_latest_is_said_and_so_are_newer_runs_that_are_not_finished(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resolve.find_run(store, "latest").id == NEW
    said = capsys.readouterr().err
    assert f"latest   is run {NEW}" in said
    assert f"newer, but not finished: {FAILED} (failed)" in said
    assert resolve.find_run(store, NEW).id == NEW
    assert not capsys.readouterr().err


def test_students_are_found_by_run_method_and_artifact(store: Store) -> None:
    def found(name: str) -> tuple[str, str | None]:
        run, method = resolve.find_student(store, name)
        return run.id, method

    assert found("latest") == (NEW, None)
    assert found("latest/cpt") == (NEW, "cpt")
    assert found("training-0303") == (OLD, "cpt")
    assert found(str(store.artifacts / ("training-" + "13" * 8))) == (NEW, "cpt")
    with pytest.raises(ConfigError, match="no run in"):
        resolve.find_student(store, str(store.root))


@pytest.mark.parametrize("find", [resolve.find_data, lambda s, n: Path(_text(s, n))])
def test_data_are_found_by_run_artifact_and_folder(
    store: Store, find: Callable[[Store, str], Path]
) -> None:
    folder = store.artifacts / ("data-" + "10" * 8)
    assert find(store, "latest") == find(store, "data-10") == find(store, str(folder)) == folder
    with pytest.raises(ConfigError, match="has no prepared data"):
        find(store, FAILED)


def test_a_moved_store_is_still_found(store: Store, tmp_path: Path) -> None:
    store.root.rename(tmp_path / "moved")
    moved = Store(tmp_path / "moved")
    assert resolve.find_data(moved, "latest").parent == moved.artifacts
    (moved.artifacts / ("data-" + "10" * 8) / "index.json").unlink()
    (moved.artifacts / ("data-" + "10" * 8)).rmdir()
    with pytest.raises(MismatchError, match="is gone"):
        resolve.find_data(moved, "latest")


def test_models_of_an_evaluation_are_named_after_method_run_or_number(store: Store) -> None:
    names = _name(store, ["latest", OLD, "latest"], "demo")
    assert list(names) == ["original", "longred-c", f"longred-c-{OLD}", f"longred-c-{NEW}"]


def test_a_store_is_given_once(store: Store) -> None:
    result = CliRunner().invoke(app, ["run", "demo", "store.path=a", "--store", "b"])
    assert isinstance(result.exception, ConfigError)
    assert "give one of them" in str(result.exception)


def test_status_and_show_name_newer_runs(store: Store) -> None:
    status = CliRunner().invoke(app, ["status", "--store", str(store.root)]).output
    assert f"latest run   finished   {NEW}" in status
    assert f"not finished failed     {FAILED}" in status
    shown = CliRunner().invoke(app, ["show", "--store", str(store.root)])
    assert f"run      {NEW}  (finished)" in shown.output
    assert f"{FAILED} (failed)" in shown.output
    write_json(store.runs / NEW / "run.json", {"id": 3})
    assert f"run      {OLD}" in CliRunner().invoke(app, ["show", "--store", str(store.root)]).output
