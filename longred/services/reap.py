"""Closes runs whose process is gone, everywhere they are shown: on disk, in MLflow, in Prefect.

It also ends a process whose flow run is being cancelled where nobody else does: its worker died, or
it was started from a terminal. Doing it twice changes nothing more.
"""

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psutil

from longred.config import TrackingConfig
from longred.errors import LongredError
from longred.runs.record import RunRecord, is_loopback, list_runs, load_run, read_run
from longred.services.prefect_api import end_run, running_tasks, unfinished_flow_runs
from longred.services.servers import mlflow_page
from longred.store.artifacts import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANCEL_SECONDS = 40.0
"""How long a cancellation is left to the worker, which asks first and kills after 30 seconds."""

KILL_SECONDS = 120.0
END_SECONDS = 120.0
"""How long a process that was asked is waited for: its training ends a step and saves."""

SETTLED_SECONDS = 60.0


def close_records(store: Store) -> Iterator[str]:
    """Record every run as lost that says running and whose process is gone; yield what was done."""
    for run_id in list_runs(store):
        if read_run(store, run_id).status != "running":
            continue
        record = load_run(store, run_id)
        if record.status == "lost":
            yield f"{run_id}: lost, its process {int(record.process[0])} is gone"


def close_in_mlflow(store: Store, warn: Callable[[str], None]) -> Iterator[str]:
    """Show in MLflow what it lacks of ended runs, and end there what still says RUNNING.

    Args:
        store: the store whose runs are looked at.
        warn: told of a server that does not answer; the others are gone on with.
    """
    from longred.runs.follower import unreachable

    # A process that has ended its run still shows the end of it, by itself.
    ended = {
        run.id: run
        for run in _records(store)
        if run.status != "running" and (run.is_gone() or run.host != socket.gethostname())
    }
    places = {tuple(sorted(run.config["tracking"].items())) for run in ended.values()}
    for place in sorted(places, key=repr):
        try:
            yield from _close_at(store, TrackingConfig(**dict(place)), ended)
        except unreachable() as error:
            reason = str(error).strip().partition("\n")[0]
            warn(f"MLflow at {dict(place)['uri'] or store.root} does not answer ({reason})")


def _close_at(store: Store, tracking: TrackingConfig, ended: dict[str, RunRecord]) -> Iterator[str]:
    """Do so at one server and experiment."""
    from longred.runs.follower import open_mirror
    from longred.runs.mlflow_home import connect

    client, experiment = connect(store.root, tracking)
    mirror = open_mirror(store.root, tracking, mlflow_page(store.root))
    for run in ended.values():
        if not run.in_mlflow and run.config["tracking"] == tracking.model_dump(mode="json"):
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
        if record and not record.is_gone():
            yield from _end_cancelled(flow_run, record, api)
            continue
        if not record and not (_is_settled(flow_run) and process_is_gone(flow_run, api)):
            continue
        state = "CANCELLED" if flow_run["state_type"] == "CANCELLING" else "CRASHED"
        message = f"its process is gone (run {record.id})" if record else "its process is gone"
        for task_run in running_tasks(api, [run_id]):
            end_run(api, "task_runs", task_run, state, message)
        if end_run(api, "flow_runs", run_id, state, message):
            yield f"{record.id if record else flow_run['name']}: flow run {run_id} {state.lower()}"


def _end_cancelled(flow_run: dict[str, Any], record: RunRecord, api: str) -> Iterator[str]:
    """End this machine's process of a flow run that is being cancelled for too long.

    It is asked first, which lets a training save; killed, its trainer saves and ends by itself.
    """
    if flow_run["state_type"] != "CANCELLING" or record.host != socket.gethostname():
        return
    waited = time.time() - _since(flow_run)
    if waited < CANCEL_SECONDS:
        return
    number = signal.SIGTERM if waited < KILL_SECONDS else signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        # The record's identity was compared with the process just before.
        process = psutil.Process(int(record.process[0]))
        process.send_signal(number)
        yield f"{record.id}: is being cancelled, its process gets {number.name}"
        psutil.wait_procs([process], timeout=END_SECONDS)
    # By itself it says Crashed: Prefect takes a signal that no worker has announced for that.
    if record.is_gone() and end_run(
        api, "flow_runs", flow_run["id"], "CANCELLED", "ended by the reaper"
    ):
        yield f"{record.id}: flow run {flow_run['id']} cancelled"


def reap(
    store: Store, find_api: Callable[[], str | None], warn: Callable[[str], None]
) -> list[str]:
    """Close everything that is to be closed, and return what was done.

    A place that does not answer is said and left for the next time.

    Args:
        store: the store whose runs are looked at.
        find_api: returns the address of Prefect's API, or None where it is not running.
        warn: told of what could not be looked at.
    """
    done: list[str] = []
    api = find_api()
    steps: list[Callable[[], Iterator[str]]]
    steps = [lambda: close_records(store), lambda: close_in_mlflow(store, warn)]
    if api is None:
        warn("Prefect is not running here; `longred up`, then reap again")
    else:
        steps.append(lambda: close_in_prefect(store, api))
    for step in steps:
        try:
            done += step()
        except LongredError as error:
            warn(str(error))
    return done


def _records(store: Store) -> list[RunRecord]:
    """Return every run's record, oldest first, each as it is on disk."""
    return [read_run(store, run_id) for run_id in list_runs(store)]


def _is_attempt(flow_run: dict[str, Any], record: RunRecord) -> bool:
    """Return whether a record is of a flow run's present attempt, and not of one before a retry."""
    return flow_run["state_type"] == "CANCELLING" or record.started >= _since(flow_run)


def _is_settled(flow_run: dict[str, Any]) -> bool:
    """Return whether what the server says of a process is of the present attempt by now."""
    return time.time() - _since(flow_run) > SETTLED_SECONDS


def _since(flow_run: dict[str, Any]) -> float:
    """Return when a flow run took on its state, in unix seconds."""
    return datetime.fromisoformat(flow_run["state"]["timestamp"]).timestamp()


def process_is_gone(flow_run: dict[str, Any], api: str) -> bool:
    """Return whether the process of a flow run ended on this machine; unknown is not gone.

    A worker notes `host:pid`, or a process id alone, which is this machine's where the server is.
    """
    host, _, pid = str(flow_run.get("infrastructure_pid") or "").rpartition(":")
    is_ours = host == socket.gethostname() or (not host and is_loopback(api))
    return is_ours and pid.isdigit() and not psutil.pid_exists(int(pid))
