"""A run whose artifacts all exist is recorded without Prefect; any other takes the ordinary way."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from longred.cli import flow_host
from longred.cli.flow_host import reuse_pipeline
from longred.config import RunConfig
from longred.progress import Progress
from longred.runs.record import list_runs, load_config, load_run
from longred.runs.scope import Scope
from longred.runs.session import Watcher, open_run, run_options
from longred.store.artifacts import Artifact, Store


def make_data(store: Store, progress: Progress) -> Artifact:
    return store.build("data", {}, {}, lambda folder, work: (folder / "a").touch())


def make_selection(store: Store, progress: Progress) -> Artifact:
    return store.build("selection", {}, {}, lambda folder, work: (folder / "b").touch())


def run_two_stages(recipe: str, overrides: Sequence[str]) -> None:
    """Run a pipeline of two stages."""
    config = load_config(recipe, overrides)
    with open_run(config, recipe, overrides, is_followed=False) as run:
        run.make("data", make_data)
        run.make("selection", make_selection)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setenv("LONGRED_STORE", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(flow_host, "dry_run_pipeline", run_two_stages)
    return load_config("demo", ["seed=5"])


def reuse(config: RunConfig, scope: Scope | None = None) -> str | None:
    with run_options(scope=scope):
        return reuse_pipeline(config, "demo", ["seed=5"])


def test_a_run_is_recorded_with_all_its_stages_if_they_exist(config: RunConfig) -> None:
    assert reuse(config) is None, "no run has finished yet"
    run_two_stages("demo", ["seed=5"])
    watcher = Watcher()
    with run_options(listener=watcher):
        run_id = reuse(config)
    store = Store(config.store.path)
    assert run_id is not None
    assert list_runs(store)[-1] == run_id
    first, second = (load_run(store, each) for each in list_runs(store))
    assert (second.status, second.in_mlflow) == ("finished", False)
    assert second.overrides == ["seed=5"]
    assert [(stage.name, stage.status) for stage in second.stages] == [
        ("data", "skipped"),
        ("selection", "skipped"),
    ]
    assert [stage.path for stage in second.stages] == [stage.path for stage in first.stages]
    assert [stage.digest for stage in watcher.stages] == [stage.digest for stage in first.stages]


@pytest.mark.parametrize("change", ["missing", "from", "server", "settings"])
def test_whatever_has_to_be_built_or_shown_takes_the_ordinary_way(
    change: str, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_two_stages("demo", ["seed=5"])
    (run_id,) = list_runs(Store(config.store.path))
    scope = None
    if change == "missing":
        stage = load_run(Store(config.store.path), run_id).stages[1]
        shutil.rmtree(str(stage.path))
    elif change == "from":
        scope = Scope(start="selection")
    elif change == "server":
        monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    else:
        config = load_config("demo", ["seed=6"])
    assert reuse(config, scope) is None
    assert list_runs(Store(config.store.path)) == [run_id]


def test_a_stage_out_of_scope_may_be_missing(config: RunConfig) -> None:
    run_two_stages("demo", ["seed=5"])
    store = Store(config.store.path)
    (first,) = list_runs(store)
    shutil.rmtree(str(load_run(store, first).stages[1].path))
    run_id = reuse(config, Scope(only="data"))
    assert run_id is not None
    record = load_run(store, run_id)
    assert [stage.status for stage in record.stages] == ["skipped", "stale"]
    assert record.part == "only data"
