"""A run's record is correct however the run ended."""

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from longred.config import RunConfig
from longred.errors import ConfigError, MismatchError, PreflightError, Stopped, StorageError
from longred.progress import Progress
from longred.runs.record import (
    RunRecord,
    StageRecord,
    is_alive,
    list_runs,
    load_config,
    load_run,
    newer_unfinished,
    newest_runs,
    pin_run,
    process_identity,
    read_runs,
)
from longred.runs.run_store import RunStore
from longred.runs.scope import Scope
from longred.runs.session import current_run, open_run, run_options
from longred.store.artifacts import Artifact, Store


def build(store: Store, text: str = "content", stage: str = "data") -> Artifact:
    def make(folder: Path, work: Path) -> None:
        (folder / "file.txt").write_text(text)

    return store.build(stage, {"text": text}, {}, make)


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all tests, because creating it takes seconds."""
    return f"sqlite:///{tmp_path_factory.getbasetemp() / 'mlflow.db'}"


@pytest.fixture
def config(tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The demo recipe with its store in a temporary folder."""
    monkeypatch.setenv("LONGRED_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("LONGRED_TRACKING_URI", tracking_uri)
    return load_config("demo", ["seed=3"])


def test_the_environment_says_where_the_store_is_unless_an_override_does(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config.store.path == str(tmp_path / "store")
    assert load_config("demo", ["store.path=other"]).store.path == "other"
    monkeypatch.setenv("LONGRED_TRACKING_URI", "http://127.0.0.1:5999")
    elsewhere = load_config("demo", ["seed=3"])
    assert elsewhere.tracking.uri == "http://127.0.0.1:5999"
    assert elsewhere.digest_values() == config.digest_values()


@pytest.mark.medium
def test_a_finished_run_lists_its_stages_in_order(config: RunConfig) -> None:
    with open_run(config, "demo", ["seed=3"], prefect_flow_run_id="flow-1") as run:
        assert current_run() is run
        run.make("training/cpt", lambda store, progress: build(store, "a", "training"))
        run.make("data", lambda store, progress: build(store), prefect_task_run_id="task-1")
        run.make("again", lambda store, progress: build(store))
    with pytest.raises(LookupError, match="open_run"):
        current_run()
    record = load_run(Store(config.store.path))
    assert (record.id, record.status, record.error) == (run.record.id, "finished", None)
    assert (record.recipe, record.overrides) == ("demo", ["seed=3"])
    assert record.config["seed"] == 3
    assert record.prefect_flow_run_id == "flow-1"
    assert record.finished is not None
    assert record.finished >= record.started
    stages = record.last_attempts()
    assert list(stages) == ["training/cpt", "data", "again"]
    assert [s.status for s in stages.values()] == ["ran", "ran", "skipped"]
    assert stages["training/cpt"].stage == "training"
    assert stages["data"].digest == stages["again"].digest
    assert stages["data"].prefect_task_run_id == "task-1"
    assert Path(str(stages["data"].path), "file.txt").is_file()


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (StorageError("disk is full"), "failed", "disk is full"),
        (Stopped(15), "stopped", "signal 15"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
        (ValueError("unforeseen"), "failed", "ValueError: unforeseen"),
    ],
)
def test_how_a_run_ended_badly_is_recorded(
    config: RunConfig, error: BaseException, status: str, text: str
) -> None:
    def fail(store: Store, progress: Progress) -> Artifact:
        def make(folder: Path, work: Path) -> None:
            raise error

        return store.build("data", {}, {}, make)

    with pytest.raises(type(error)), open_run(config, "demo") as run:
        run.make("data", fail)
    record = load_run(run.store, run.record.id)
    (stage,) = record.stages
    assert (record.status, stage.status) == (status, status)
    assert text in str(record.error)
    assert text in str(stage.error)
    assert stage.digest
    assert Path(str(stage.work)).is_dir()


def test_a_second_attempt_stands_beside_the_first(config: RunConfig) -> None:
    def fail(store: Store, progress: Progress) -> Artifact:
        raise StorageError("once")

    with open_run(config, "demo") as run:
        with pytest.raises(StorageError):
            run.make("data", fail)
        run.make("data", lambda store, progress: build(store))
    record = load_run(run.store)
    assert [stage.status for stage in record.stages] == ["failed", "ran"]
    assert record.last_attempts()["data"].status == "ran"
    assert record.status == "finished"


def test_listeners_hear_of_stages_and_progress(config: RunConfig) -> None:
    heard: list[str] = []

    class Ear:
        def changed(self, run: RunRecord) -> None:
            heard.append(f"{run.status}:{','.join(s.status for s in run.stages)}")

        def progressed(self, stage: StageRecord, done: int, total: int, text: str) -> None:
            heard.append(f"{stage.name} {done}/{total} {text}")

    def work(store: Store, progress: Progress) -> Artifact:
        progress(1, 2, "half")
        return build(store)

    also: list[int] = []
    with run_options(listener=Ear()), open_run(config, "demo") as run:
        run.make("data", work, on_progress=lambda done, total, text: also.append(done))
    assert heard == ["running:running", "data 1/2 half", "running:ran", "finished:ran"]
    assert also == [1]


def test_a_run_whose_process_is_gone_is_lost(config: RunConfig) -> None:
    with open_run(config, "demo") as run:
        run.make("data", lambda store, progress: build(store))
    path = run.store.runs / run.record.id / "run.json"
    values = json.loads(path.read_text())
    values["status"], values["process"] = "running", [2**22 + 7, 1.0]
    values["stages"][0]["status"] = "running"
    path.write_text(json.dumps(values))
    record = load_run(run.store, run.record.id)
    assert (record.status, record.stages[0].status) == ("lost", "lost")
    assert json.loads(path.read_text())["status"] == "lost"


def test_ids_sort_by_age_and_latest_is_the_newest(config: RunConfig) -> None:
    ids = []
    for _ in range(2):
        with open_run(config, "demo") as run:
            ids.append(run.record.id)
    assert list_runs(run.store) == ids == sorted(ids)
    assert load_run(run.store, "latest").id == ids[1]
    assert load_run(run.store, ids[0]).id == ids[0]


def test_runs_that_do_not_exist_or_cannot_be_read(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no runs yet"):
        load_run(Store(tmp_path / "empty"))
    with open_run(config, "demo") as run:
        pass
    with pytest.raises(ConfigError, match=run.record.id):
        load_run(run.store, "../../etc")
    (run.store.runs / run.record.id / "run.json").write_text('{"id": 3}')
    with pytest.raises(MismatchError, match=r"run\.json"):
        load_run(run.store, run.record.id)


def test_a_process_is_known_by_its_id_and_start_time() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = process_identity(child.pid)
    assert is_alive(identity)
    assert not is_alive([identity[0], identity[1] - 100])
    child.kill()
    # Wait for its end without reaping it: it stays a zombie.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(identity)
    child.wait()
    assert not is_alive(identity)
    assert not is_alive([])


def test_a_run_can_start_from_what_an_earlier_one_was_made_with(
    config: RunConfig, tmp_path: Path
) -> None:
    with open_run(config, "demo", ["seed=3"], prefect_flow_run_id="first") as first:
        pass
    again = load_config("latest", ["training.num_steps=7"])
    assert (again.seed, again.training.seed, again.training.num_steps) == (3, 3, 7)
    assert again.data == config.data
    assert load_config(first.record.id) == config
    other_seed = load_config(first.record.id, ["seed=4"])
    assert other_seed.training.seed == 4
    with open_run(again, "latest", ["training.num_steps=7"], prefect_flow_run_id="second") as run:
        assert (run.record.recipe, run.record.origin) == ("demo", first.record.id)
        assert run.record.overrides == ["seed=3", "training.num_steps=7"]
    # A retried flow run starts from the same run as its first attempt, even if there is a newer
    # run.
    with open_run(config, "demo", prefect_flow_run_id="third") as newest:
        pass
    assert pin_run("latest", prefect_flow_run_id="second") == first.record.id
    assert pin_run("latest", prefect_flow_run_id="fourth") == newest.record.id
    assert pin_run("latest") == newest.record.id
    assert pin_run("demo") == "demo"
    with pytest.raises(ConfigError, match="no such run"):
        load_config("20200101-000000-demo-0000")
    with pytest.raises(ConfigError, match=r"training\.num_stepz: unknown key; did you"):
        load_config("latest", ["training.num_stepz=7"])


def test_where_an_earlier_run_was_kept_and_shown_is_not_taken_over(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LONGRED_TRACKING_URI")
    place = {"uri": "http://127.0.0.1:5000", "experiment": "mine"}
    with open_run(config, "demo") as run:
        pass
    run.record.config["tracking"] = place
    run.record.config["store"] = {"path": "elsewhere"}
    run.record.save(run.store.runs)
    again = load_config("latest")
    assert Path(again.store.path) == run.store.root
    assert (again.tracking.uri, again.tracking.experiment) == (None, "mine")
    run.record.config["tracking"] = {**place, "uri": "https://mlflow.example.org"}
    run.record.save(run.store.runs)
    assert load_config("latest").tracking.uri == "https://mlflow.example.org"


def test_a_run_of_another_machine_is_not_taken_for_lost(config: RunConfig) -> None:
    with open_run(config, "demo") as run:
        pass
    run.record.status, run.record.process = "running", [1, 0.0]
    run.record.host = "another-machine"
    run.record.save(run.store.runs)
    assert load_run(run.store, run.record.id).status == "running"
    run.record.host = socket.gethostname()
    run.record.save(run.store.runs)
    assert load_run(run.store, run.record.id).status == "lost"


def test_a_refused_run_leaves_no_record(config: RunConfig) -> None:
    with open_run(config, "demo") as first:
        first.make("data", lambda store, progress: build(store))
    heard: list[str] = []

    class Ear:
        def changed(self, run: RunRecord) -> None:
            heard.append(run.status)

        def progressed(self, stage: StageRecord, done: int, total: int, text: str) -> None:
            heard.append(text)

    with (
        run_options(scope=Scope(only="evaluation"), listener=Ear()),
        pytest.raises(ConfigError, match="data is not made yet"),
        open_run(config, first.record.id) as run,
    ):
        run.make("data", lambda store, progress: build(store, "changed"))
    assert [path.name for path in first.store.runs.iterdir()] == [first.record.id]
    assert load_run(first.store).id == first.record.id
    assert not heard


def test_a_machine_that_refuses_and_an_early_stop_leave_no_record(config: RunConfig) -> None:
    def refuse(stage: str) -> None:
        raise PreflightError(f"{stage} needs more memory")

    def build_checked(store: Store, progress: Progress) -> Artifact:
        assert isinstance(store, RunStore)
        store.before_build = refuse
        return build(store)

    with pytest.raises(PreflightError), open_run(config, "demo") as run:
        run.make("data", build_checked)
    with pytest.raises(Stopped), open_run(config, "demo") as run:
        raise Stopped(15)
    assert not list(run.store.runs.iterdir())
    # An unforeseen error is kept, to look into.
    with pytest.raises(ValueError, match="unforeseen"), open_run(config, "demo") as run:
        raise ValueError("unforeseen")
    assert load_run(run.store, run.record.id).status == "failed"


def test_latest_is_the_newest_finished_run(config: RunConfig) -> None:
    def stop(store: Store, progress: Progress) -> Artifact:
        def make(folder: Path, work: Path) -> None:
            raise Stopped(15)

        return store.build("training", {}, {}, make)

    with pytest.raises(Stopped), open_run(config, "demo") as unfinished:
        unfinished.make("training/cpt", stop)
    store = unfinished.store
    with pytest.raises(ConfigError, match=rf"no run in .* {unfinished.record.id} \(stopped\)"):
        load_run(store)
    with open_run(config, "demo") as finished:
        pass
    with pytest.raises(Stopped), open_run(config, "demo") as newer:
        newer.make("training/cpt", stop)
    assert load_run(store).id == load_config_origin(store) == finished.record.id
    assert [each.id for each in newer_unfinished(store, load_run(store))] == [newer.record.id]
    assert pin_run(newer.record.id[:-2]) == load_run(store, newer.record.id).id == newer.record.id


def load_config_origin(store: Store) -> str:
    return pin_run("latest", [f"store.path={store.root}"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"id": "2026',
        b"\x00\xff\xfe",
        b"[1, 2]",
        b"null",
        b'{"id": 3}',
        b'{"config": "text"}',
        b'{"unknown": 1}',
        b'{"id": "20260101-000000-other-aaaa"}',
        b'{"config": {"name": "demo", "tracking": null, "training": {}}}',
        b'{"config": {"name": "demo", "tracking": {}, "training": {}}}',
    ],
)
def test_a_damaged_record_is_left_out_and_named_once(
    config: RunConfig, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with open_run(config, "demo") as whole:
        pass
    store, damaged = whole.store, "20991231-235959-demo-ffff"
    path = store.runs / damaged / "run.json"
    path.parent.mkdir()
    values = json.loads((store.runs / whole.record.id / "run.json").read_text())
    if content.startswith(b'{"') and content.endswith(b"}"):
        content = json.dumps({**values, "id": damaged, **json.loads(content)}).encode()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert [run.id for run in read_runs(store)] == [whole.record.id]
        assert [run.id for run in newest_runs(store)] == [whole.record.id]
        assert load_run(store).id == whole.record.id
    assert [record.getMessage().count(str(path)) for record in caplog.records] == [1]
    with pytest.raises(MismatchError, match=r"run\.json"):
        load_run(store, damaged)
    with pytest.raises(ConfigError, match="its record is damaged"):
        load_run(store, "20260101")
