"""MLflow mirrors a run's record and journals, each point once; a run works without MLflow."""

import dataclasses
import json
import logging
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from longred.config import RunConfig, TrackingConfig
from longred.errors import NonFiniteLossError
from longred.progress import Progress
from longred.runs.mirror import flatten
from longred.runs.mlflow_home import connect
from longred.runs.record import load_config, load_run
from longred.runs.scope import Scope
from longred.runs.session import open_run, run_options
from longred.store.artifacts import Artifact, Store, write_json
from longred.store.journal import Journal

SCORES = {"cpt": {"short": {"cloze": 61.5, "average": 61.5}, "ruler": {"256": {"average": 40}}}}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow database for all tests, because creating it takes seconds."""
    return tmp_path_factory.getbasetemp() / "mlflow.db"


@pytest.fixture
def config(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The demo recipe, with an experiment of the test's own."""
    monkeypatch.setenv("LONGRED_STORE", str(tmp_path / "store"))
    place = [f"tracking.uri=sqlite:///{database}", f"tracking.experiment={tmp_path.name}"]
    return load_config("demo", place)


def train(store: Store, progress: Progress) -> Artifact:
    """A stage that journals three steps in its work folder and writes a small and a large file."""

    def make(folder: Path, work: Path) -> None:
        journal = Journal(work / "metrics.jsonl")
        for step in (1, 2, 3):
            journal.append({"train/loss": 3.0 - step / 2, "train/grad_norm": 1.0}, step=step)
        journal.close()
        (folder / "metrics.jsonl").write_bytes(journal.path.read_bytes())
        write_json(folder / "training.json", {"method": "cpt"})
        (folder / "model.safetensors").write_bytes(b"0" * (2 << 20))

    return store.build("training", {"method": "cpt"}, {}, make)


def report(store: Store, progress: Progress) -> Artifact:
    def make(folder: Path, work: Path) -> None:
        write_json(folder / "scores.json", SCORES)
        journal = Journal(folder / "metrics.jsonl")
        journal.append({"cpt/short/cloze": 61.5, "capacity/short": 61.5}, step=0)
        journal.append({"cpt/ruler/average": 40.0}, step=256)
        journal.close()
        (folder / "index.html").write_text("<html></html>")
        (folder / "table.md").write_text("| model | short average |\n")

    return store.build("report", {}, {}, make)


def runs_of(config: RunConfig) -> tuple[Any, dict[str, Any]]:
    """Return an MLflow client, and the experiment's runs by id or stage, the newest of each."""
    client, experiment = connect(Path(config.store.path), config.tracking)
    found = client.search_runs([experiment], order_by=["attributes.start_time ASC"])
    children = {"mlflow.parentRunId"}
    return client, {
        run.info.run_name if children & run.data.tags.keys() else run.data.tags["longred.run"]: run
        for run in found
    }


@pytest.mark.medium
def test_parent_and_children_hold_params_metrics_and_artifacts(config: RunConfig) -> None:
    with open_run(config, "demo", prefect_flow_run_id="flow-1") as run:
        made = run.make("training/cpt", train, prefect_task_run_id="task-1")
        run.make("report", report)
    record = load_run(run.store)
    assert record.in_mlflow
    client, runs = runs_of(config)
    parent, child = runs[record.id], runs["training/cpt"]
    assert parent.info.run_id == record.mlflow_run_id
    assert child.info.run_id == record.last_attempts()["training/cpt"].mlflow_run_id
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert parent.data.params["training.learning_rate"] == "0.0005"
    assert parent.data.params["data.sources.1.name"] == "practice-128"
    assert parent.data.tags["prefect.flow_run_id"] == "flow-1"
    assert parent.data.metrics["cpt/short/cloze"] == 61.5
    assert parent.data.metrics["cpt/ruler/average"] == 40.0
    assert parent.info.run_name == f"longred-c · {record.id}"
    assert parent.data.metrics["1_short_average_percent"] == 61.5
    description = parent.data.tags["mlflow.note.content"]
    assert description.startswith("| model | short average |")
    assert parent.data.tags["mlflow.source.name"] == "longred/recipes/demo.yaml"
    experiment = client.get_experiment(parent.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "store.path" not in parent.data.params
    assert child.data.params["learning_rate"] == "0.0005"
    assert child.data.params["part"] == "cpt"
    tags = child.data.tags
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    assert (tags["longred.stage"], tags["longred.status"]) == ("training", "ran")
    assert (tags["longred.digest"], tags["longred.artifact"]) == (made.digest, made.path)
    assert tags["prefect.task_run_id"] == "task-1"
    history = client.get_metric_history(child.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.5), (2, 2.0), (3, 1.5)]
    uploaded = {item.path for item in client.list_artifacts(child.info.run_id)}
    assert uploaded == {"MANIFEST.json", "metrics.jsonl", "training.json"}
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} == {
        "config.json",
        "report",
    }
    assert child.info.artifact_uri.startswith("file:")


def test_a_skipped_stage_has_a_child_that_names_the_artifact(config: RunConfig) -> None:
    for _ in range(2):
        with open_run(config, "demo") as run:
            made = run.make("training/cpt", train)
    _, runs = runs_of(config)
    child = runs["training/cpt"]
    assert child.data.tags["longred.status"] == "skipped"
    assert child.data.tags["longred.digest"] == made.digest
    assert child.data.tags["longred.run"] == run.record.id
    assert child.info.status == "FINISHED"
    assert not child.data.metrics


def test_metrics_are_seen_while_a_stage_runs_and_stay_single(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longred.runs.follower.POLL_SECONDS", 0.05)
    seen: list[int] = []

    def make(folder: Path, work: Path) -> None:
        journal = Journal(work / "metrics.jsonl")
        # Lines of an earlier process: step 2 is after its last checkpoint and is recomputed.
        old = {"key": "train/loss", "value": 9.0, "time": 1.7e9}
        lines = [{**old, "step": 1}, {**old, "step": 2}]
        journal.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        time.sleep(0.3)
        journal.truncate_after(1)
        journal.append({"train/loss": 7.0}, step=2)
        deadline = time.monotonic() + 120
        while not seen and time.monotonic() < deadline:
            client, runs = runs_of(config)
            child = runs.get("training/cpt")
            history = client.get_metric_history(child.info.run_id, "train/loss") if child else []
            seen.extend(m.step for m in history)
        journal.append({"train/loss": 6.0}, step=3)
        journal.close()
        (folder / "metrics.jsonl").write_bytes(journal.path.read_bytes())

    with open_run(config, "demo") as run:
        run.make("training/cpt", lambda store, _: store.build("training", {}, {}, make))
    client, runs = runs_of(config)
    history = client.get_metric_history(runs["training/cpt"].info.run_id, "train/loss")
    assert seen
    assert [(m.step, m.value) for m in history] == [(1, 9.0), (2, 7.0), (3, 6.0)]


def test_a_failed_stage_is_marked_and_keeps_its_points(config: RunConfig) -> None:
    def stage(store: Store, progress: Progress) -> Artifact:
        def make(folder: Path, work: Path) -> None:
            Journal(work / "metrics.jsonl").append({"train/loss": 5.0}, step=1)
            raise NonFiniteLossError("train/long_loss is NaN at step 2")

        return store.build("training", {}, {}, make)

    with pytest.raises(NonFiniteLossError), open_run(config, "demo") as run:
        run.make("training/cpt", stage)
    _, runs = runs_of(config)
    child, parent = runs["training/cpt"], runs[run.record.id]
    assert (child.info.status, parent.info.status) == ("FAILED", "FAILED")
    assert "NaN at step 2" in child.data.tags["longred.error"]
    assert child.data.metrics["train/loss"] == 5.0


def test_without_mlflow_the_work_goes_on_and_is_shown_later(
    config: RunConfig, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        away = TrackingConfig(uri=f"http://127.0.0.1:{taken.getsockname()[1]}")
        lost = config.model_copy(update={"tracking": away})
        started = time.monotonic()
        with caplog.at_level(logging.WARNING), open_run(lost, "demo") as run:
            made = run.make("training/cpt", train)
        assert time.monotonic() - started < 150
    assert made.folder.is_dir()
    assert [
        r.message.count("does not answer") for r in caplog.records if "MLflow" in r.message
    ] == [1]
    record = load_run(run.store)
    assert (record.status, record.in_mlflow) == ("finished", False)
    # Simulate the server's return: set the run's recorded tracking to the database.
    record.config["tracking"] = config.model_dump(mode="json")["tracking"]
    record.save(run.store.runs)
    with open_run(config, "demo"):
        pass
    assert load_run(run.store, record.id).in_mlflow
    client, runs = runs_of(config)
    child = runs["training/cpt"]
    history = client.get_metric_history(child.info.run_id, "train/loss")
    assert [m.step for m in history] == [1, 2, 3]
    assert runs[record.id].info.status == "FINISHED"


def test_flatten_joins_keys_and_keeps_plain_lists() -> None:
    values = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}, {"e": 2}], "f": "x"}
    assert flatten(values) == {"a.b": 1, "a.c": [1, 2], "d.0.e": None, "d.1.e": 2, "f": "x"}


def data(store: Store, progress: Progress) -> Artifact:
    def make(folder: Path, work: Path) -> None:
        blocks = {"long": {"num_blocks": 4, "block_length": 1024}}
        write_json(folder / "index.json", {"train": blocks, "held_out": {}})

    return store.build("data", {}, {}, make)


def evaluation(store: Store, progress: Progress) -> Artifact:
    def make(folder: Path, work: Path) -> None:
        Journal(folder / "metrics.jsonl").append({"ruler/niah_single_1": 40.0}, step=256)

    return store.build("evaluation", {}, {}, make)


def test_a_student_is_a_model_version_by_method_and_its_data_are_named(config: RunConfig) -> None:
    with open_run(config, "demo") as run:
        made = run.make("data", data)
        student = run.make("training/cpt", train)
    client, runs = runs_of(config)
    child = runs["training/cpt"]
    version = client.get_model_version_by_alias("longred-demo", "cpt")
    assert version.run_id == child.info.run_id
    assert version.tags["longred.artifact"] == student.path
    assert version.source == child.info.artifact_uri
    # The source holds the manifest with the hashes of the weights, but no copy of the weights.
    assert "model.safetensors" not in {i.path for i in client.list_artifacts(child.info.run_id)}
    assert "MANIFEST.json" in {i.path for i in client.list_artifacts(child.info.run_id)}
    for each in (child, runs[run.record.id]):
        (used,) = each.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("data", made.digest)
        assert json.loads(used.dataset.source) == {"uri": made.path}
        assert json.loads(used.dataset.profile) == {"train_long_tokens": 4096}
    with open_run(config, "demo") as again:
        again.make("training/cpt", train)
    assert client.get_model_version_by_alias("longred-demo", "cpt").version == version.version


def test_how_busy_the_machine_is_is_shown_while_a_training_runs(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longred.runs.follower.POLL_SECONDS", 0.05)
    monkeypatch.setattr("longred.runs.mirror.SYSTEM_SECONDS", 0.2)

    def make(folder: Path, work: Path) -> None:
        deadline = time.monotonic() + 120
        busy: set[str] = set()
        while not busy and time.monotonic() < deadline:
            time.sleep(0.1)
            _, runs = runs_of(config)
            child = runs.get("training/cpt")
            busy = {k for k in child.data.metrics if k.startswith("system/")} if child else set()
        assert "system/cpu_utilization_percentage" in busy

    with open_run(config, "demo") as run:
        run.make("training/cpt", lambda store, _: store.build("training", {}, {}, make))


def test_a_run_of_one_stage_names_its_origin_what_is_stale_and_what_was_scored(
    config: RunConfig,
) -> None:
    with open_run(config, "demo") as first:
        first.make("data", data)
    page = "http://127.0.0.1:4200/runs/flow-run/flow-2"
    with (
        run_options(scope=Scope(only="evaluation")),
        open_run(config, first.record.id, prefect_flow_run_id="flow-2", prefect_url=page) as run,
    ):
        run.make("data", data)
        run.make("evaluation/longred-c", evaluation)
        run.make("report", report)
    _, runs = runs_of(config)
    parent, stale = runs[run.record.id], runs["report"]
    tags = parent.data.tags
    assert tags["longred.origin"] == first.record.id
    assert tags["longred.part"] == "only evaluation"
    assert tags["longred.stale"] == "report"
    assert tags["prefect.url"] == page
    assert page in tags["mlflow.note.content"]
    assert stale.data.tags["longred.status"] == "stale"
    assert runs["evaluation/longred-c"].data.tags["longred.origin"] == first.record.id
    scored = parent.data.metrics
    assert scored["longred-c/ruler/niah_single_1"] == scored["ruler/niah_single_1"] == 40.0


def test_damaged_records_and_journals_keep_no_other_run_out_of_mlflow(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with open_run(config, "demo") as broken:
        made = broken.make("training/cpt", train)
    broken.record.in_mlflow = False
    broken.record.save(broken.store.runs)
    (made.folder / "metrics.jsonl").write_bytes(b"{broken\n")
    damaged = broken.store.runs / "20991231-235959-demo-ffff" / "run.json"
    damaged.parent.mkdir()
    damaged.write_bytes(b"\x00\xff")
    with caplog.at_level(logging.WARNING), open_run(config, "demo") as run:
        pass
    assert load_run(run.store, run.record.id).in_mlflow
    said = [record.getMessage() for record in caplog.records]
    assert sum(str(damaged) in text for text in said) == 1
    assert sum("metrics.jsonl: is damaged" in text for text in said) == 1


def test_a_damaged_database_does_not_stop_the_run_and_is_named(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    own = config.model_copy(update={"tracking": TrackingConfig()})
    database = Path(config.store.path) / "mlflow.db"
    database.parent.mkdir()
    database.write_bytes(b"garbage" * 1000)
    with caplog.at_level(logging.WARNING), open_run(own, "demo") as run:
        pass
    assert load_run(run.store).status == "finished"
    (said,) = (each.getMessage() for each in caplog.records if "MLflow" in each.getMessage())
    assert f"mv {database}" in said


def test_runs_that_reused_everything_reach_mlflow_however_many_came_after(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longred.runs.follower.NUM_EARLIER_RUNS", 1)
    with open_run(config, "demo", is_followed=False) as reused:
        pass
    for number in range(2):
        later = dataclasses.replace(
            reused.record, id=f"29991231-23595{number}-demo-ffff", in_mlflow=True
        )
        (reused.store.runs / later.id).mkdir()
        later.save(reused.store.runs)
    with open_run(config, "demo"):
        pass
    assert load_run(reused.store, reused.record.id).in_mlflow
