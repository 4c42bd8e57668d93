"""A run builds the requested part of the pipeline and gives reasons."""

from pathlib import Path

import pytest

from longred.config import RunConfig
from longred.errors import ConfigError
from longred.runs.record import list_runs, load_config
from longred.runs.scope import WHAT_CHANGED, Mode, Scope
from longred.runs.session import Run, Watcher, open_run, run_options
from longred.store.artifacts import Artifact, Store


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.getbasetemp() / 'mlflow.db'}"


@pytest.fixture
def config(tmp_path: Path, tracking_uri: str) -> RunConfig:
    return load_config("demo", [f"store.path={tmp_path / 'store'}", f"tracking.uri={tracking_uri}"])


class Pipeline:
    """Three stages in a row; `made` lists those that were built."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.made: list[str] = []

    def stage(self, run: Run, stage: str, values: dict[str, object], *before: Artifact) -> Artifact:
        def fill(folder: Path, work: Path) -> None:
            self.made.append(stage)
            (folder / "file.txt").write_text(f"{len(self.made)}")

        inputs = {artifact.stage: artifact.digest for artifact in before}
        return run.make(stage, lambda store, progress: store.build(stage, values, inputs, fill))

    def run(self, scope: Scope | None = None, *, rate: float = 0.5) -> dict[str, tuple[str, str]]:
        """Return status and reason of each stage."""
        self.made.clear()
        watcher = Watcher()
        with (
            run_options(scope=scope, listener=watcher),
            open_run(self.config, "demo") as run,
        ):
            data = self.stage(run, "data", {"length": 8})
            student = self.stage(run, "training", {"rate": rate, "nested": {"a": [1]}}, data)
            self.stage(run, "evaluation", {}, student)
        return {stage.name: (stage.status, stage.reason or "") for stage in watcher.stages}


@pytest.mark.medium
def test_reasons_name_the_changed_key_and_follow_downstream(config: RunConfig) -> None:
    pipeline = Pipeline(config)
    first = pipeline.run()
    assert set(first.values()) == {("ran", "not made before")}
    assert set(pipeline.run().values()) == {("skipped", "")}
    assert pipeline.run(rate=0.25) == {
        "data": ("skipped", ""),
        "training": ("ran", "training.rate: 0.5 -> 0.25"),
        "evaluation": ("ran", "training changed"),
    }


@pytest.mark.medium
def test_a_dry_run_tells_the_same_and_writes_nothing(config: RunConfig) -> None:
    pipeline = Pipeline(config)
    store = Path(config.store.path)
    told = pipeline.run(Scope(is_dry=True))
    assert told == dict.fromkeys(("data", "training", "evaluation"), ("stale", "not made before"))
    assert not store.exists()
    pipeline.run()
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    told = pipeline.run(Scope(is_dry=True), rate=0.25)
    assert told == {
        "data": ("skipped", ""),
        "training": ("stale", "training.rate: 0.5 -> 0.25"),
        "evaluation": ("stale", "training changed"),
    }
    assert pipeline.made == []
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


@pytest.mark.medium
def test_one_stage_alone_needs_what_is_before_it_and_leaves_what_follows(config: RunConfig) -> None:
    pipeline = Pipeline(config)
    with pytest.raises(ConfigError, match="--only training: data is not made yet"):
        pipeline.run(Scope(only="training"))
    pipeline.run()
    statuses = pipeline.run(Scope(only="training"), rate=0.25)
    assert {name: status for name, (status, _) in statuses.items()} == {
        "data": "skipped",
        "training": "ran",
        "evaluation": "stale",
    }
    assert pipeline.made == ["training"]
    # A run of the whole pipeline then builds only the stale stages.
    assert pipeline.run(rate=0.25)["training"] == ("skipped", "")
    assert pipeline.made == ["evaluation"]


def test_from_a_stage_on_everything_is_made_again(config: RunConfig) -> None:
    pipeline = Pipeline(config)
    pipeline.run()
    store = Store(config.store.path)
    (folder,) = store.artifacts.glob("training-*")
    statuses = pipeline.run(Scope(start="training"))
    assert statuses["data"] == ("skipped", "")
    assert statuses["training"] == statuses["evaluation"] == ("ran", "requested (--from training)")
    assert pipeline.made == ["training", "evaluation"]
    assert (folder / "file.txt").read_text() == "1"
    assert pipeline.run(Scope(start="training", is_dry=True))["training"][0] == "stale"


def test_what_was_begun_or_lost_is_said(config: RunConfig) -> None:
    pipeline = Pipeline(config)
    pipeline.run()
    store = Store(config.store.path)
    (folder,) = store.artifacts.glob("training-*")
    (folder / "file.txt").unlink()
    assert pipeline.run(Scope(is_dry=True))["training"][1] == "its folder is missing or incomplete"
    work = store.work(folder.name.removeprefix("training-"))
    work.mkdir(parents=True)
    (work / "lock").touch()
    assert pipeline.run(Scope(is_dry=True))["training"][1] == "started but not finished"


def test_a_dry_run_leaves_no_record(config: RunConfig) -> None:
    Pipeline(config).run(Scope(is_dry=True))
    assert list_runs(Store(config.store.path)) == []


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ({"only": "model"}, "--only: model is not one of data, extension"),
        ({"start": "trainin"}, "--from: trainin is not one of"),
        ({"only": "data", "start": "data"}, "exclude each other"),
    ],
)
def test_a_scope_that_means_nothing_is_refused(scope: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scope(**scope)


def test_modes_of_all_stages() -> None:
    only = Scope(only="training")
    assert only.mode("selection") is Mode.REQUIRE
    assert only.mode("training") is Mode.MAKE
    assert only.mode("report") is Mode.TELL
    again = Scope(start="evaluation")
    assert again.mode("training") is Mode.MAKE
    assert again.mode("report") is Mode.REMAKE


@pytest.mark.parametrize(
    ("scope", "fates"),
    [
        (Scope(), {"data": "runs", "training": "runs", "report": "runs"}),
        (Scope(only="training"), {"data": "missing", "training": "runs", "report": "stale"}),
        (Scope(only="training", is_dry=True), {"data": "missing", "report": "stale"}),
        (Scope(start="training"), {"data": "runs", "report": "runs"}),
    ],
)
def test_what_becomes_of_a_stage_that_is_not_made_yet(scope: Scope, fates: dict[str, str]) -> None:
    assert {stage: scope.fate(stage, "not made before") for stage in fates} == fates
    assert scope.fate("data", None) == "skipped"


def test_a_run_may_be_told_where_to_start_in_words() -> None:
    assert Scope().starting(WHAT_CHANGED) == Scope().starting(None) == Scope()
    assert Scope(is_dry=True).starting("data") == Scope(start="data", is_dry=True)
    with pytest.raises(ConfigError, match="dat is not one of"):
        Scope().starting("dat")
