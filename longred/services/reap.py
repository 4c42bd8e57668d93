"""Close the runs of dead processes wherever they are shown: on disk, in MLflow, in Prefect.

It also ends a process whose flow run is being cancelled if nothing else does: its worker died, or
it was started from a terminal. Repeating it is harmless.
"""

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import psutil

from longred.config import TrackingConfig
from longred.errors import LongredError
from longred.runs.mirror import Mirror
from longred.runs.mlflow_home import unreachable
from longred.runs.record import RunRecord, is_loopback, load_run, read_runs
from longred.services.prefect_api import end_run, running_tasks, unfinished_flow_runs
from longred.services.servers import mlflow_page
from longred.store.artifacts import Store

CANCEL_SECONDS = 40.0
"""Time left to the worker, which sends SIGTERM first and SIGKILL after 30 seconds."""

KILL_SECONDS = 120.0
END_SECONDS = 120.0
"""Time for a process to end after its signal: its training ends a micro-batch and saves."""

SETTLED_SECONDS = 60.0


def close_records(store: Store) -> Iterator[str]:
    """Mark running records of dead processes as lost; yield one message per run."""
    for run in read_runs(store):
        if run.status == "running" and load_run(store, run.id).status == "lost":
            yield f"{run.id}: lost, its process {int(run.process[0])} is gone"


def close_in_mlflow(store: Store, warn: Callable[[str], None]) -> Iterator[str]:
    """Send to MLflow what it lacks of ended runs, and end their MLflow runs that are still RUNNING.

    Args:
        store: the store of the runs.
        warn: called with each server that does not answer; the others are still processed.
    """
    # A living process sends the end of its run itself.
    ended = {
        run.id: run
        for run in read_runs(store)
        if run.status != "running" and (run.is_gone() or run.host != socket.gethostname())
    }
    servers = {tuple(sorted(run.config["tracking"].items())) for run in ended.values()}
    for server in sorted(servers, key=repr):
        tracking = TrackingConfig(**dict(server))
        try:
            yield from _close_at_server(store, tracking, ended, warn)
        except LongredError as error:
            warn(str(error))
        except unreachable() as error:
            reason = str(error).strip().partition("\n")[0]
            warn(f"MLflow at {tracking.uri or store.root} does not answer ({reason})")


def _close_at_server(
    store: Store,
    tracking: TrackingConfig,
    ended: dict[str, RunRecord],
    warn: Callable[[str], None],
) -> Iterator[str]:
    mirror = Mirror(store.root, tracking, mlflow_page(store.root))
    for run in ended.values():
        if not run.in_mlflow and run.config["tracking"] == tracking.model_dump(mode="json"):
            try:
                mirror.show(run)
            except LongredError as error:
                warn(f"run {run.id} cannot be sent to MLflow: {error}")
                continue
            finally:
                # Also the ids of what was sent before an error, which would be sent again.
                run.save(store.runs)
            yield f"{run.id}: {run.status}, shown in MLflow"
    # MLflow runs that no record knows: created just before their process died.
    is_running = "attributes.status = 'RUNNING'"
    client = mirror.client
    for each in client.search_runs([mirror.experiment_id], is_running, max_results=1000):
        run_id = each.data.tags.get("longred.run")
        if run_id in ended:
            client.set_tag(each.info.run_id, "longred.status", "lost")
            client.set_terminated(each.info.run_id, "KILLED")
            yield f"{run_id}: MLflow run {each.info.run_id} ended as KILLED"


def close_in_prefect(store: Store, api: str) -> Iterator[str]:
    """Mark flow runs of dead processes as Crashed, or as Cancelled if they were being cancelled.

    A flow run that has opened a run is judged by that run's process, any other by the process that
    its worker has registered.
    """
    runs = read_runs(store)
    newest = {run.prefect_flow_run_id: run for run in runs if run.prefect_flow_run_id}
    for flow_run in unfinished_flow_runs(api):
        run_id = flow_run["id"]
        is_cancelling = flow_run["state_type"] == "CANCELLING"
        in_state_since = datetime.fromisoformat(flow_run["state"]["timestamp"]).timestamp()
        record = newest.get(run_id)
        if record and not is_cancelling and record.started < in_state_since:
            # It is the record of an attempt before a retry.
            record = None
        if record and not record.is_gone():
            if is_cancelling and record.host == socket.gethostname():
                yield from _end_cancelled(run_id, in_state_since, record, api)
            continue
        # Right after a change of state the server may still name the process of the last attempt.
        is_settled = time.time() - in_state_since > SETTLED_SECONDS
        if not record and not (is_settled and process_is_gone(flow_run, api)):
            continue
        state = "CANCELLED" if is_cancelling else "CRASHED"
        message = f"its process is gone (run {record.id})" if record else "its process is gone"
        for task_run in running_tasks(api, run_id):
            end_run(api, "task_runs", task_run, state, message)
        if end_run(api, "flow_runs", run_id, state, message):
            yield f"{record.id if record else flow_run['name']}: flow run {run_id} {state.lower()}"


def _end_cancelled(run_id: str, since: float, record: RunRecord, api: str) -> Iterator[str]:
    """End this machine's process of a flow run that has been cancelling for too long.

    SIGTERM first, which lets a training save; after SIGKILL its trainer still saves and exits.
    """
    waited = time.time() - since
    if waited < CANCEL_SECONDS:
        return
    number = signal.SIGTERM if waited < KILL_SECONDS else signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        # The caller has just compared the start time of the process with the record.
        process = psutil.Process(int(record.process[0]))
        process.send_signal(number)
        yield f"{record.id}: is being cancelled, its process gets {number.name}"
        psutil.wait_procs([process], timeout=END_SECONDS)
    # Prefect reports a signal that no worker has announced as Crashed.
    if record.is_gone() and end_run(api, "flow_runs", run_id, "CANCELLED", "ended by the reaper"):
        yield f"{record.id}: flow run {run_id} cancelled"


def reap(
    store: Store, find_api: Callable[[], str | None], warn: Callable[[str], None]
) -> list[str]:
    """Close all dead runs; return one message per action.

    Args:
        store: the store of the runs.
        find_api: returns the URL of Prefect's API, or None if it is not running.
        warn: called with problems; what cannot be reached is left for the next time.
    """
    done: list[str] = []
    api = find_api()
    steps = [close_records(store), close_in_mlflow(store, warn)]
    if api is None:
        warn("Prefect is not running here; `longred up`, then reap again")
    else:
        steps.append(close_in_prefect(store, api))
    for step in steps:
        try:
            done += step
        except LongredError as error:
            warn(str(error))
    return done


def process_is_gone(flow_run: dict[str, Any], api: str) -> bool:
    """Return whether the process of a flow run ended on this machine; False if unknown.

    A worker registers `host:pid`, or just a process id, which is this machine's if the server is.
    """
    host, _, pid = str(flow_run.get("infrastructure_pid") or "").rpartition(":")
    is_ours = host == socket.gethostname() or (not host and is_loopback(api))
    return is_ours and pid.isdigit() and not psutil.pid_exists(int(pid))
