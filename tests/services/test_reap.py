"""Only runs of dead processes are closed: on disk, in MLflow and in Prefect."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longred.config import RunConfig
from longred.runs.mirror import Mirror
from longred.runs.mlflow_home import connect
from longred.runs.record import RunRecord, StageRecord, load_config, process_identity, read_run
from longred.services import reap
from longred.store.artifacts import Store


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all tests, because creating it takes seconds."""
    return f"sqlite:///{tmp_path_factory.getbasetemp() / 'mlflow.db'}"


@pytest.fixture
def config(tmp_path: Path, tracking_uri: str) -> RunConfig:
    places = [f"store.path={tmp_path / 'store'}", f"tracking.uri={tracking_uri}"]
    return load_config("demo", [*places, f"tracking.experiment={tmp_path.name}"])


@pytest.fixture
def dead() -> list[float]:
    """The identity of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(child.pid)
    child.kill()
    child.communicate()
    return identity


def left_open(config: RunConfig, run_id: str, process: list[float], **fields: Any) -> RunRecord:
    """Record a run whose training is running."""
    record = RunRecord(
        id=run_id,
        recipe="demo",
        overrides=[],
        config=config.model_dump(mode="json"),
        digest="d",
        started=1.8e9,
        process=process,
        stages=[StageRecord("training/cpt", "training", started=1.8e9, digest="ab")],
        **fields,
    )
    store = Store(config.store.path)
    (store.runs / run_id).mkdir(parents=True)
    record.save(store.runs)
    return record


def test_only_runs_whose_process_is_gone_are_recorded_as_lost(
    config: RunConfig, dead: list[float]
) -> None:
    store = Store(config.store.path)
    left_open(config, "20260101-000000-demo-aaaa", dead)
    left_open(config, "20260101-000001-demo-bbbb", process_identity())
    left_open(config, "20260101-000002-demo-cccc", dead, host="another-machine")
    (line,) = reap.close_records(store)
    assert line.startswith("20260101-000000-demo-aaaa: lost")
    assert read_run(store, "20260101-000000-demo-aaaa").stages[0].status == "lost"
    assert read_run(store, "20260101-000001-demo-bbbb").status == "running"
    assert read_run(store, "20260101-000002-demo-cccc").status == "running"
    assert list(reap.close_records(store)) == []


def test_mlflow_runs_of_ended_runs_are_ended_too(config: RunConfig, dead: list[float]) -> None:
    store = Store(config.store.path)
    client, experiment = connect(store.root, config.tracking)
    alive = left_open(config, "20260101-000001-demo-bbbb", process_identity())
    record = left_open(config, "20260101-000000-demo-aaaa", dead)
    for each in (alive, record):
        Mirror(store.root, config.tracking).show(each)
        each.save(store.runs)
    # Created just before the process died, so no record holds its id.
    tags = {"longred.run": record.id}
    unknown = client.create_run(experiment, tags=tags, run_name="training/longred-c")
    foreign = client.create_run(experiment, tags={"longred.run": "of-another-store"})
    list(reap.close_records(store))
    lines = list(reap.close_in_mlflow(store, print))
    assert len(lines) == 2
    assert all(record.id in line for line in lines)
    states = {run.info.run_id: run.info.status for run in client.search_runs([experiment])}
    ours = [record.mlflow_run_id, record.stages[0].mlflow_run_id, unknown.info.run_id]
    assert {states[str(run_id)] for run_id in ours} == {"KILLED"}
    theirs = [alive.mlflow_run_id, alive.stages[0].mlflow_run_id, foreign.info.run_id]
    assert {states[str(run_id)] for run_id in theirs} == {"RUNNING"}
    assert list(reap.close_in_mlflow(store, print)) == []


def test_a_damaged_journal_keeps_no_other_run_out_of_mlflow(
    config: RunConfig, dead: list[float], tmp_path: Path
) -> None:
    store = Store(config.store.path)
    (tmp_path / "metrics.jsonl").write_bytes(b"{broken\n")
    damaged = left_open(config, "20260101-000000-demo-aaaa", dead)
    damaged.stages[0].work = str(tmp_path)
    damaged.save(store.runs)
    whole = left_open(config, "20260101-000001-demo-bbbb", dead)
    list(reap.close_records(store))
    said: list[str] = []
    lines = [line for line in reap.close_in_mlflow(store, said.append) if "shown" in line]
    assert lines == [f"{whole.id}: lost, shown in MLflow"]
    assert [text.partition(":")[0] for text in said] == [
        f"run {damaged.id} cannot be sent to MLflow"
    ]
    # What was sent of it is not sent a second time.
    client, experiment = connect(store.root, config.tracking)
    number = len(client.search_runs([experiment]))
    list(reap.close_in_mlflow(store, said.append))
    assert len(client.search_runs([experiment])) == number


@pytest.fixture
def flow_runs(prefect_server: str) -> Iterator[Any]:
    """Factory of flow runs on a real server, and a function that returns their state."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling, Running

    @flow(name="longred")
    def empty() -> None:
        pass

    with get_client(sync_client=True) as client:

        def make(cancelling: bool = False) -> str:
            run = client.create_flow_run(empty, state=Running())
            if cancelling:
                client.set_flow_run_state(run.id, Cancelling(), force=True)
            return str(run.id)

        def state(run_id: str) -> str:
            return str(client.read_flow_run(run_id).state_name)

        yield make, state


def test_flow_runs_whose_process_is_gone_are_crashed_or_cancelled(
    config: RunConfig, dead: list[float], flow_runs: Any, prefect_server: str
) -> None:
    make, state = flow_runs
    store = Store(config.store.path)
    crashed, cancelled, alive, retried, unknown = make(), make(True), make(), make(), make()
    soon = {"status": "lost", "finished": None}
    for number, (flow_run, process) in enumerate(
        [(crashed, dead), (cancelled, dead), (alive, process_identity()), (retried, dead)]
    ):
        run = left_open(
            config,
            f"2026010{number}-000000-demo-aaaa",
            process,
            prefect_flow_run_id=flow_run,
            **soon,
        )
        # The record of a retried flow run is that of the previous attempt, which started before
        # the flow run's current state.
        run.started = 1.0e9 if flow_run == retried else 4.0e9
        run.save(store.runs)
    lines = list(reap.close_in_prefect(store, prefect_server))
    assert len(lines) == 2
    assert state(crashed) == "Crashed"
    assert state(cancelled) == "Cancelled"
    assert {state(each) for each in (alive, retried, unknown)} == {"Running"}
    assert list(reap.close_in_prefect(store, prefect_server)) == []


def test_a_process_id_alone_is_judged_only_where_the_server_is_on_this_machine(
    dead: list[float],
) -> None:
    gone = {"infrastructure_pid": str(int(dead[0]))}
    assert reap.process_is_gone(gone, "http://127.0.0.1:4200/api")
    assert not reap.process_is_gone(gone, "https://prefect.example.org/api")
    assert not reap.process_is_gone(
        {"infrastructure_pid": str(os.getpid())}, "http://localhost/api"
    )
    assert not reap.process_is_gone({"infrastructure_pid": None}, "http://127.0.0.1:4200/api")
