"""Closes runs whose process is gone, everywhere they are shown: on disk, in MLflow, in Prefect.

Doing it twice changes nothing more.
"""

import socket
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psutil

from longred.artifacts import Store
from longred.config import TrackingConfig
from longred.prefect_api import end_run, running_tasks, unfinished_flow_runs
from longred.runs import RunRecord, is_loopback, list_runs, load_run, read_run

if TYPE_CHECKING:
    from mlflow import MlflowClient


def close_records(store: Store) -> Iterator[str]:
    """Record every run as lost that says running and whose process is gone; yield what was done."""
    for run_id in list_runs(store):
        if read_run(store, run_id).status != "running":
            continue
        record = load_run(store, run_id)
        if record.status == "lost":
            yield f"{run_id}: lost, its process {int(record.process[0])} is gone"


def close_in_mlflow(store: Store) -> Iterator[str]:
    """Show in MLflow what it lacks of ended runs, and end there what still says RUNNING.

    Raises:
        OSError, MlflowException, SQLAlchemyError, RequestException: MLflow cannot be reached.
    """
    from longred.follower import connect, open_mirror

    ended = {run.id: run for run in _records(store) if run.status != "running"}
    places = {tuple(sorted(run.config["tracking"].items())) for run in ended.values()}
    for place in sorted(places, key=repr):
        tracking = TrackingConfig(**dict(place))
        client, experiment = connect(store.root, tracking)
        mirror = open_mirror(store.root, tracking)
        for run in ended.values():
            if not run.in_mlflow and run.config["tracking"] == dict(place):
                mirror.show(run)
                run.save(store.runs)
                yield f"{run.id}: {run.status}, shown in MLflow"
        yield from _end_left_over(client, experiment, ended)


def _end_left_over(
    client: "MlflowClient", experiment: str, ended: dict[str, RunRecord]
) -> Iterator[str]:
    """End MLflow runs of ended runs that no record knows: made just before a process died."""
    found = client.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=1000)
    for each in found:
        if each.data.tags.get("longred.run") in ended:
            client.set_tag(each.info.run_id, "longred.status", "lost")
            client.set_terminated(each.info.run_id, "KILLED")
            yield f"{each.data.tags['longred.run']}: MLflow run {each.info.run_id} ended as KILLED"


def close_in_prefect(store: Store, api: str) -> Iterator[str]:
    """Mark flow runs as Crashed whose process is gone; those that were being cancelled, Cancelled.

    A flow run that has opened a run is judged by that run's process, any other by the process that
    its worker has noted.
    """
    newest: dict[str, RunRecord] = {}
    for run in _records(store):
        if run.prefect_flow_run_id:
            newest[run.prefect_flow_run_id] = run
    for flow_run in unfinished_flow_runs(api):
        run_id = flow_run["id"]
        record = newest.get(run_id)
        if record and not _is_attempt(flow_run, record):
            record = None
        gone = record.is_gone() if record else process_is_gone(flow_run, api)
        if not gone:
            continue
        state = "CANCELLED" if flow_run["state_type"] == "CANCELLING" else "CRASHED"
        message = f"its process is gone (run {record.id})" if record else "its process is gone"
        for task_run in running_tasks(api, [run_id]):
            end_run(api, "task_runs", task_run, state, message)
        if end_run(api, "flow_runs", run_id, state, message):
            yield f"{record.id if record else flow_run['name']}: flow run {run_id} {state.lower()}"


def _records(store: Store) -> list[RunRecord]:
    """Return every run's record, oldest first, each as it is on disk."""
    return [read_run(store, run_id) for run_id in list_runs(store)]


def _is_attempt(flow_run: dict[str, Any], record: RunRecord) -> bool:
    """Return whether a record is of a flow run's present attempt, and not of one before a retry."""
    since = datetime.fromisoformat(flow_run["state"]["timestamp"]).timestamp()
    return flow_run["state_type"] == "CANCELLING" or record.started >= since


def process_is_gone(flow_run: dict[str, Any], api: str) -> bool:
    """Return whether the process of a flow run ended on this machine; unknown is not gone.

    A worker notes `host:pid`, or a process id alone, which is this machine's where the server is.
    """
    host, _, pid = str(flow_run.get("infrastructure_pid") or "").rpartition(":")
    is_ours = host == socket.gethostname() or (not host and is_loopback(api))
    return is_ours and pid.isdigit() and not psutil.pid_exists(int(pid))
