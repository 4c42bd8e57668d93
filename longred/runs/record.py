"""What a run is: the record of its stages, their artifacts and its ids in MLflow and Prefect."""

import dataclasses
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from longred.config import RunConfig, StoreConfig, load_recipe, load_recorded
from longred.errors import ConfigError, MismatchError
from longred.store.artifacts import Store, read_json, write_json

STORE_VARIABLE = "LONGRED_STORE"
REMOTE_VARIABLE = "LONGRED_STORE_REMOTE"
TRACKING_VARIABLE = "LONGRED_TRACKING_URI"
_VARIABLES = {
    STORE_VARIABLE: "store.path",
    REMOTE_VARIABLE: "store.remote",
    TRACKING_VARIABLE: "tracking.uri",
}
MAX_EARLIER_RUNS = 100
RUN_ID = r"[0-9]{8}-[0-9]{6}-[a-z0-9._-]+"
_RUN_ID = re.compile(RUN_ID + r"\Z")
_LOOPBACK = re.compile(r"https?://(127\.|localhost|\[::1\])")


def load_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe; the environment says where the store and MLflow are, unless an override does.

    Args:
        recipe: a recipe's name or file, or an earlier run's id (or `latest`) for what that run was
            made with, as it was recorded.
        overrides: changes to it.

    Raises:
        ConfigError: the recipe, the run, a key or a value is wrong; the message names it.
    """
    given = {override.partition("=")[0] for override in overrides}
    places = [
        f"{key}={os.environ[variable]}"
        for variable, key in _VARIABLES.items()
        if os.environ.get(variable) and key not in given
    ]
    if not is_run_name(recipe):
        return load_recipe(recipe, [*places, *overrides])
    store = find_store(overrides)
    config = load_run(store, recipe).config
    config["store"] = {**config.get("store", {}), "path": str(store.root)}
    tracking = dict(config.get("tracking") or {})
    if is_loopback(tracking.get("uri") or ""):
        # The address of a server that `longred up` had started, and may have stopped since.
        tracking["uri"] = None
    return load_recorded({**config, "tracking": tracking}, [*places, *overrides])


def is_run_name(name: str) -> bool:
    """Return whether a name stands for a run: an id, or `latest`."""
    return name == "latest" or _RUN_ID.match(name) is not None


def is_loopback(url: str) -> bool:
    """Return whether an address is of a server on this machine."""
    return _LOOPBACK.match(url) is not None


def find_store(overrides: Sequence[str] = ()) -> Store:
    """Return the store that an override names, else the environment's, else the default one."""
    path = os.environ.get(STORE_VARIABLE) or StoreConfig().path
    for override in overrides:
        key, _, value = override.partition("=")
        if key == _VARIABLES[STORE_VARIABLE]:
            path = value
    return Store(path)


@dataclass
class StageRecord:
    """One attempt to make one stage's artifact.

    Attributes:
        name: `training/longred-c` where a stage makes several artifacts, else the stage's name.
        stage: the stage's name.
        status: running, ran, skipped, failed, stopped, lost, or stale where it should be made and
            the run leaves it out.
        work: folder of resumable progress while it is made.
        reason: why it had to be made; None where it existed.
    """

    name: str
    stage: str
    status: str = "running"
    started: float = 0.0
    seconds: float | None = None
    digest: str | None = None
    path: str | None = None
    work: str | None = None
    reason: str | None = None
    mlflow_run_id: str | None = None
    prefect_task_run_id: str | None = None
    error: str | None = None


@dataclass
class RunRecord:
    """What `runs/<id>/run.json` holds; times are unix seconds.

    Attributes:
        digest: identity of the configuration, without what cannot change a result.
        status: running, finished, failed, stopped, or lost when its process is gone.
        process: id and start time of the process that makes it.
        host: name of the machine of that process.
        origin: id of the earlier run whose settings it started from.
        part: which part of the pipeline it makes, in words; None for all of it.
        prefect_url: page of its Prefect flow run.
        mlflow_url: page of it in MLflow.
        stages: every attempt in order; the last one of a name counts.
        in_mlflow: whether MLflow has all of it.
    """

    id: str
    recipe: str
    overrides: list[str]
    config: dict[str, Any]
    digest: str
    status: str = "running"
    started: float = 0.0
    finished: float | None = None
    error: str | None = None
    process: list[float] = field(default_factory=list)
    host: str = field(default_factory=socket.gethostname)
    mlflow_run_id: str | None = None
    prefect_flow_run_id: str | None = None
    prefect_url: str | None = None
    origin: str | None = None
    part: str | None = None
    mlflow_url: str | None = None
    in_mlflow: bool = False
    stages: list[StageRecord] = field(default_factory=list)

    def last_attempts(self) -> dict[str, StageRecord]:
        """Return the stages by name, in order, each as its last attempt left it."""
        return {stage.name: stage for stage in self.stages}

    def is_gone(self) -> bool:
        """Return whether its process is known to have ended; another machine's is not known."""
        return self.host == socket.gethostname() and not is_alive(self.process)

    def save(self, runs: Path) -> None:
        """Write the record so that a crash leaves the old or the new one."""
        write_json(runs / self.id / "run.json", dataclasses.asdict(self))


def process_identity(pid: int | None = None) -> list[float]:
    """Return a process's id and start time; its id alone may be given out again."""
    process = psutil.Process(pid)
    return [process.pid, process.create_time()]


def is_alive(identity: Sequence[float]) -> bool:
    """Return whether the process of an identity still runs."""
    if len(identity) != 2:
        return False
    try:
        process = psutil.Process(int(identity[0]))
        return (
            abs(process.create_time() - identity[1]) < 1.0
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False


def list_runs(store: Store) -> list[str]:
    """Return the ids of the recorded runs, oldest first."""
    if not store.runs.is_dir():
        return []
    folders = [path for path in store.runs.iterdir() if _RUN_ID.match(path.name)]
    return sorted(path.name for path in folders if (path / "run.json").is_file())


def load_run(store: Store, run_id: str = "latest") -> RunRecord:
    """Return a run's record; one whose process is gone is from then on recorded as lost.

    Raises:
        ConfigError: there is no such run; the message names the newest ones.
        MismatchError: the record cannot be read.
    """
    runs = list_runs(store)
    if not runs:
        raise ConfigError(f"{store.runs}: holds no runs yet; make one with `longred demo`")
    wanted = runs[-1] if run_id == "latest" else run_id
    if wanted not in runs:
        raise ConfigError(f"{run_id}: no such run in {store.runs} (newest: {', '.join(runs[-3:])})")
    record = read_run(store, wanted)
    if record.status == "running" and record.is_gone():
        record.status = "lost"
        record.error = "its process ended without a word; run the same command to go on"
        for stage in record.stages:
            stage.status = "lost" if stage.status == "running" else stage.status
        record.save(store.runs)
    return record


def pin_run(
    recipe: str, overrides: Sequence[str] = (), prefect_flow_run_id: str | None = None
) -> str:
    """Return the id of the run that `latest` stands for; anything else is returned as it is.

    To the retry of a flow run it stands for what it stood for at the first attempt.

    Raises:
        ConfigError: there are no runs.
    """
    if recipe != "latest":
        return recipe
    store = find_store(overrides)
    if prefect_flow_run_id:
        for run_id in reversed(list_runs(store)[-MAX_EARLIER_RUNS:]):
            record = read_run(store, run_id)
            if record.prefect_flow_run_id == prefect_flow_run_id and record.origin:
                return record.origin
    return load_run(store).id


def merge_overrides(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return both lists of overrides, without those of the first that the second replaces."""
    given = {override.partition("=")[0] for override in second}
    return [*(each for each in first if each.partition("=")[0] not in given), *second]


def earlier_runs(store: Store, run: RunRecord) -> Iterator[RunRecord]:
    """Yield the records of the newest earlier runs of the same recipe, newest first.

    Raises:
        MismatchError: a record cannot be read.
    """
    for run_id in reversed(list_runs(store)[-MAX_EARLIER_RUNS:]):
        if run_id != run.id:
            record = read_run(store, run_id)
            if record.config.get("name") == run.config.get("name"):
                yield record


def read_run(store: Store, run_id: str) -> RunRecord:
    """Return a run's record as it is on disk.

    Raises:
        MismatchError: it cannot be read.
    """
    path = store.runs / run_id / "run.json"
    values = read_json(path)
    try:
        stages = [StageRecord(**stage) for stage in values.pop("stages")]
        return RunRecord(**values, stages=stages)
    except (KeyError, TypeError, AttributeError) as error:
        raise MismatchError(f"{path}: is not a run's record ({error})") from error
