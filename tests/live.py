"""A store with running services, and pipeline processes that tests can kill."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longred.cli.flow_host import repository
from longred.runs.record import RunRecord, is_alive, list_runs, process_identity, read_run
from longred.services import servers as services
from longred.services.prefect_api import request_json
from longred.store.artifacts import Store, read_json

SMALL = [
    "data.num_tokens=65536",
    "data.num_held_out_tokens=4096",
    "profiling.num_tokens=1024",
    "training.num_threads=1",
    "training.step_tokens=2048",
    "training.micro_batch_tokens=2048",
    "training.baselines=[]",
]
LONG = [
    *SMALL,
    "training.num_steps=5000",
    "training.max_epochs=1000",
    "training.save_every_steps=1000",
]
"""Overrides of a training that is too long for a test to wait for its end."""


def free_ports() -> dict[str, int]:
    """Return two free ports."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        return {"prefect": one.getsockname()[1], "mlflow": two.getsockname()[1]}


def until(works: Callable[[], Any]) -> Any:
    """Call `works` until it returns a true value and return that; fail after five minutes."""
    deadline = time.monotonic() + 300
    while not (answer := works()):
        assert time.monotonic() < deadline, "timeout after five minutes"
        time.sleep(0.1)
    return answer


def wait_until_free(lock: Path) -> None:
    """Wait until no process holds the lock file."""
    with lock.open("a") as file:

        def is_free() -> bool:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        until(is_free)


def ask(url: str, question: Any = None, *, method: str | None = None) -> Any:
    """Return a server's JSON answer; on an HTTP error, fail with the server's message."""
    try:
        return request_json(url, question, method=method, seconds=120)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{url}: {error}: {error.read().decode()}") from error


@dataclass
class Pipeline:
    """A store with running services.

    Attributes:
        root: the store's root.
        ports: ports of the servers, the same at every start.
    """

    root: Path
    ports: dict[str, int]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.ports['prefect']}/api"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    @property
    def store(self) -> Store:
        return Store(self.root)

    def up(self) -> None:
        services.up(self.root, repository(), ports=self.ports, say=print)

    def kill_service(self, name: str) -> None:
        """Kill a service's process group with SIGKILL, and wait until it is dead."""
        service = services.load(self.root)[name]
        os.killpg(int(service.process[0]), signal.SIGKILL)
        until(lambda: not is_alive(service.process))

    def start(
        self, *arguments: str, api: str | None = None, environment: Mapping[str, str] = {}
    ) -> subprocess.Popen[str]:
        """Start a `longred` command; `api` is its Prefect server, by default this store's."""
        output = (self.root / "output.txt").open("a+")
        process = subprocess.Popen(
            [sys.executable, "-m", "longred.cli", *arguments],
            env={
                **os.environ,
                "LONGRED_STORE": str(self.root),
                "LONGRED_TRACKING_URI": self.mlflow,
                "PREFECT_API_URL": api or self.api,
                "PREFECT_HOME": str(self.root / "prefect"),
                "PYTHONPATH": str(repository()),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        output.close()
        self.processes.append(process)
        return process

    def run(self, *arguments: str, api: str | None = None) -> int:
        """Run a `longred` command to its end and return its exit code."""
        return self.start(*arguments, api=api).wait(300)

    def output(self) -> str:
        return (self.root / "output.txt").read_text()

    def record(self) -> RunRecord:
        """Read the newest run's record from disk."""
        return read_run(self.store, list_runs(self.store)[-1])

    def run_deployment(self, name: str, **parameters: Any) -> str:
        """Create a flow run of a deployment on the server and return its id."""
        deployment = ask(f"{self.api}/deployments/name/longred/{name}")
        url = f"{self.api}/deployments/{deployment['id']}/create_flow_run"
        return str(ask(url, {"parameters": parameters, "state": {"type": "SCHEDULED"}})["id"])

    def state(self, flow_run: str) -> str:
        return str(ask(f"{self.api}/flow_runs/{flow_run}")["state_name"])

    def wait_for_state(self, flow_run: str, state: str) -> None:
        """Wait until a flow run has ended; fail if it ended in another state."""
        last = {"Completed", "Failed", "Crashed", "Cancelled"}
        until(lambda: self.state(flow_run) in last)
        assert self.state(flow_run) == state, (self.root / "services/worker.log").read_text()

    def cancel(self, flow_run: str) -> None:
        """Cancel a flow run, as the button on Prefect's page does."""
        state = {"type": "CANCELLING", "name": "Cancelling"}
        answer = ask(f"{self.api}/flow_runs/{flow_run}/set_state", {"state": state})
        assert answer["status"] == "ACCEPT", answer

    def trainer(self) -> "Trainer":
        """Wait for a running trainer to finish a step, and return it."""

        def find() -> Trainer | None:
            for note in (self.root / "work").glob("*/trainer.json"):
                with contextlib.suppress(Exception):
                    trainer = Trainer(note.parent, process_identity(read_json(note)["process"]))
                    if trainer.steps(since=trainer.identity[1]):
                        return trainer
            return None

        return until(find)

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        services.down(self.root)


@dataclass(frozen=True)
class Trainer:
    """A trainer's process and folder."""

    work: Path
    identity: list[float]

    def is_alive(self) -> bool:
        return is_alive(self.identity)

    def points(self) -> list[dict[str, Any]]:
        """Return the metrics in its journal, complete lines only."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.work / "metrics.jsonl").read_text().splitlines(keepends=True)
            return [json.loads(line) for line in lines if line.endswith("\n")]
        return []

    def steps(self, since: float = 0.0) -> list[int]:
        """Return the steps finished since a time."""
        points = [p for p in self.points() if p["key"] == "train/loss" and p["time"] >= since]
        return [int(point["step"]) for point in points]

    def wait_until_gone(self) -> None:
        """Wait until the process has ended and its lock is free."""
        until(lambda: not self.is_alive())
        # Other threads may outlive the main thread and still hold the lock.
        wait_until_free(self.work / "trainer.lock")

    def saved(self) -> list[int]:
        """Return the steps of its checkpoints."""
        folders = (self.work / "checkpoints").glob("step-*")
        return sorted(int(folder.name.removeprefix("step-")) for folder in folders)
