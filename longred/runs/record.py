"""The record of a run on disk: its settings, stages, artifacts and ids in MLflow and Prefect.

`load_run` says which run a name means.
"""

import dataclasses
import difflib
import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil
from pydantic import ConfigDict, TypeAdapter, ValidationError

from longred.config import RunConfig, StoreConfig, load_recipe, load_recorded
from longred.errors import ConfigError, MismatchError, PreflightError
from longred.store.artifacts import Store, read_json, write_json

log = logging.getLogger(__name__)

STORE_VARIABLE = "LONGRED_STORE"
REMOTE_VARIABLE = "LONGRED_STORE_REMOTE"
TRACKING_VARIABLE = "LONGRED_TRACKING_URI"
_VARIABLES = {
    STORE_VARIABLE: "store.path",
    REMOTE_VARIABLE: "store.remote",
    TRACKING_VARIABLE: "tracking.uri",
}
MAX_EARLIER_RUNS = 100
LATEST = "latest"
RUN_ID = r"[0-9]{8}-[0-9]{6}-[a-z0-9._-]+"
_RUN_ID = re.compile(RUN_ID + r"\Z")
_RUN_NAME = re.compile(rf"({LATEST}|[0-9]{{8}}(-[0-9]{{0,6}}|-[0-9]{{6}}-[a-z0-9._-]*)?)\Z")
_reported: set[str] = set()
"""Damaged records that this process has warned about."""


def load_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe; environment variables set the store and MLflow unless an override does.

    Args:
        recipe: name or file of a recipe, or an earlier run as in `load_run`, whose recorded
            settings are used.
        overrides: changes, each `section.key=value`.

    Raises:
        ConfigError: the recipe, the run, a key or a value is invalid; the message names it.
    """
    given = {override.partition("=")[0].strip() for override in overrides}
    used = {
        variable: key
        for variable, key in _VARIABLES.items()
        if os.environ.get(variable) and key not in given
    }
    # A variable is plain text, an override YAML.
    environment = [f"{key}={json.dumps(os.environ[variable])}" for variable, key in used.items()]
    try:
        config = _load(recipe, environment, overrides)
    except ConfigError as error:
        message = str(error)
        for variable, key in used.items():
            message = re.sub(rf"(?m)^{re.escape(key)}: ", f"{variable} ({key}): ", message)
        raise ConfigError(message) from None
    refuse_file(config.store.path, STORE_VARIABLE if STORE_VARIABLE in used else "store.path")
    return config


def _load(recipe: str, environment: Sequence[str], overrides: Sequence[str]) -> RunConfig:
    """Read a recipe, or the recorded settings of a run."""
    if not is_run_name(recipe):
        return load_recipe(recipe, [*environment, *overrides])
    store = find_store(overrides)
    config = load_run(store, recipe).config
    config["store"] = {**config.get("store", {}), "path": str(store.root)}
    tracking = dict(config.get("tracking") or {})
    if is_loopback(tracking.get("uri") or ""):
        # The URL of a server started by `longred up`, which may have been stopped since.
        tracking["uri"] = None
    # The group is that of the recorded run.
    tracking["parent_run_id"] = None
    return load_recorded({**config, "tracking": tracking}, [*environment, *overrides])


def is_run_name(name: str) -> bool:
    """Return whether a name refers to a run: `latest`, an id, or at least the date of an id."""
    return _RUN_NAME.match(name) is not None


def is_loopback(url: str) -> bool:
    """Return whether a URL points to a server on this machine."""
    return re.match(r"https?://(127\.|localhost|\[::1\])", url) is not None


def find_store(overrides: Sequence[str] = ()) -> Store:
    """Return the store of an override, else of the environment, else the default one."""
    variable = os.environ.get(STORE_VARIABLE)
    path, owner = variable or StoreConfig().path, STORE_VARIABLE if variable else "store.path"
    for override in overrides:
        key, _, value = override.partition("=")
        if key.strip() == _VARIABLES[STORE_VARIABLE]:
            path, owner = value, "store.path"
    refuse_file(path, owner)
    return Store(path)


def refuse_file(path: str, owner: str) -> None:
    """Refuse a file as a store.

    Args:
        path: of the store.
        owner: what named it: a setting, a variable or an option.

    Raises:
        PreflightError: the path is a file.
    """
    if Path(path).expanduser().is_file():
        raise PreflightError(f"{owner}: {path} is a file; a store is a folder, name another one")


@dataclass
class StageRecord:
    """One attempt at one stage of a run.

    Attributes:
        name: name in the run, for example `training/longred-c`; just the stage's name if it runs
            once.
        stage: name of the stage.
        status: running, ran, skipped, failed, stopped, lost, or stale if the artifact is missing
            and outside the scope of the run.
        seconds: duration.
        work: folder of resumable progress while the stage runs.
        reason: why the artifact had to be built; None if it existed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

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
    """Content of `runs/<id>/run.json`; times are Unix seconds.

    Attributes:
        digest: digest of the settings that can change a result.
        status: running, finished, failed, stopped, or lost if its process is gone.
        process: id and start time of the process that executes the run.
        host: host name of that process.
        origin: id of the earlier run whose settings were used.
        part: the part of the pipeline in the run's scope, in words; None for all of it.
        prefect_url: page of the Prefect flow run.
        mlflow_url: page of the run in MLflow.
        stages: every attempt in order; the last one of each name counts.
        in_mlflow: whether MLflow has the complete run.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

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
        """Return the last attempt at each stage by name, in order."""
        return {stage.name: stage for stage in self.stages}

    def model_commit(self) -> str | None:
        """Return the original model's commit on the hub; None for a file or folder.

        A recipe keeps its `model.revision` where only `model.path` is replaced by a file or folder,
        so what was loaded decides: the hub's cache names a model's folder after its commit.
        """
        loaded = self.last_attempts().get("model")
        if loaded is None or not loaded.path:
            commit = self.config["model"].get("revision")
            return str(commit) if commit else None
        folder = Path(loaded.path)
        return folder.name if folder.parent.name == "snapshots" else None

    def is_gone(self) -> bool:
        """Return whether its process is known to have ended; unknown on other machines."""
        return self.host == socket.gethostname() and not is_alive(self.process)

    def save(self, runs: Path) -> None:
        """Write the record atomically."""
        write_json(runs / self.id / "run.json", dataclasses.asdict(self))


def process_identity(pid: int | None = None) -> list[float]:
    """Return a process's id and start time, because ids are reused."""
    process = psutil.Process(pid)
    return [process.pid, process.create_time()]


def is_alive(identity: Sequence[float]) -> bool:
    """Return whether the process with this id and start time is still running."""
    if len(identity) != 2:
        return False
    try:
        process = psutil.Process(int(identity[0]))
        is_same = abs(process.create_time() - identity[1]) < 1.0
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


_RECORD = TypeAdapter(RunRecord)


def list_runs(store: Store) -> list[str]:
    """Return the ids of the recorded runs, oldest first."""
    names = [path.parent.name for path in store.runs.glob("*/run.json")]
    return sorted(name for name in names if _RUN_ID.match(name))


def read_run(store: Store, run_id: str) -> RunRecord:
    """Read a run's record.

    Raises:
        MismatchError: the record is damaged or cannot be read.
    """
    path = store.runs / run_id / "run.json"
    try:
        record = _RECORD.validate_python(read_json(path))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        wrong = f"{key} is missing, unknown or of another type" if key else "it is no JSON object"
        raise MismatchError(f"{path}: is not a run record ({wrong})") from error
    except OSError as error:
        raise MismatchError(f"{path}: cannot be read ({error.strerror})") from error
    if record.id != run_id:
        raise MismatchError(f"{path}: is the record of another run ({record.id})")
    for key, kind in (("name", str), ("tracking", dict), ("training", dict)):
        if not isinstance(record.config.get(key), kind):
            raise MismatchError(f"{path}: is not a run record (config.{key} is missing)")
    if not isinstance(record.config["training"].get("method"), str):
        raise MismatchError(f"{path}: is not a run record (config.training.method is missing)")
    return record


def report_damage(error: MismatchError) -> None:
    """Warn of a damaged record, once per process."""
    if str(error) not in _reported:
        _reported.add(str(error))
        log.warning("%s; this run is left out: restore the file or move its folder away", error)


def read_runs(
    store: Store, on_damage: Callable[[MismatchError], None] = report_damage
) -> list[RunRecord]:
    """Read all records that can be read, oldest first; `on_damage` is called with each other."""
    return list(_readable(store, list_runs(store), on_damage))


def newest_runs(store: Store) -> Iterator[RunRecord]:
    """Yield the records of the last `MAX_EARLIER_RUNS` runs that can be read, newest first."""
    yield from _readable(store, list_runs(store)[: -MAX_EARLIER_RUNS - 1 : -1], report_damage)


def _readable(
    store: Store, run_ids: Sequence[str], on_damage: Callable[[MismatchError], None]
) -> Iterator[RunRecord]:
    for run_id in run_ids:
        try:
            yield read_run(store, run_id)
        except MismatchError as error:
            on_damage(error)


def load_run(store: Store, name: str = LATEST) -> RunRecord:
    """Read a run's record; mark the run as lost if its process is gone.

    `latest` is the newest finished run: not one that is running, and not one that failed, was
    stopped or is lost. Every other run is named by its id, or by the start of the id if only one
    run has it.

    Raises:
        ConfigError: there is no such run; the message says which there are.
        MismatchError: the record is damaged.
    """
    runs = list_runs(store)
    if not runs:
        raise ConfigError(f"{store.runs}: holds no runs yet; start one with `longred demo`")
    if name == LATEST:
        for record in _readable(store, runs[::-1], report_damage):
            if record.status == "finished":
                return record
        raise ConfigError(
            f"{LATEST}: no run in {store.runs} is finished; there are {_listing(store, runs)}; "
            "repeat the command of one to finish it, or name one by its id"
        )
    found = [name] if name in runs else [each for each in runs if each.startswith(name)]
    if len(found) > 1 and is_run_name(name):
        raise ConfigError(
            f"{name}: {len(found)} runs in {store.runs} begin with it, the newest are "
            f"{_listing(store, found)}; give more of the id"
        )
    if len(found) != 1 or not is_run_name(name):
        near = difflib.get_close_matches(name, [LATEST, *runs], n=1, cutoff=0.8)
        hint = f"did you mean {near[0]}?" if near else f"the newest are {_listing(store, runs)}"
        raise ConfigError(f"{name}: no such run in {store.runs}; {hint}")
    return mark_lost(store, read_run(store, found[0]))


def mark_lost(store: Store, record: RunRecord) -> RunRecord:
    """Record a running run and its stages as lost if its process is gone; return the record."""
    if record.status == "running" and record.is_gone():
        record.status = "lost"
        record.error = "its process ended unexpectedly; run the same command to resume"
        for stage in record.stages:
            stage.status = "lost" if stage.status == "running" else stage.status
        record.save(store.runs)
    return record


def newer_unfinished(store: Store, record: RunRecord) -> list[RunRecord]:
    """Return the runs after a finished one, oldest first; none of them is finished."""
    newer = [run_id for run_id in list_runs(store) if run_id > record.id]
    found = [mark_lost(store, each) for each in _readable(store, newer, report_damage)]
    return [each for each in found if each.status != "finished"]


def _listing(store: Store, run_ids: Sequence[str], most: int = 3) -> str:
    """Return the newest of the runs with their states, for a message."""
    states = []
    for run_id in run_ids[-most:]:
        try:
            states.append(f"{run_id} ({mark_lost(store, read_run(store, run_id)).status})")
        except MismatchError:
            states.append(f"{run_id} (its record is damaged)")
    rest = len(run_ids) - len(states)
    return ", ".join(states) + (f" and {rest} older" if rest else "")


def pin_run(
    recipe: str, overrides: Sequence[str] = (), prefect_flow_run_id: str | None = None
) -> str:
    """Replace `latest`, or the start of an id, by the id of a run; return any recipe unchanged.

    A retried flow run resolves `latest` to the same run as its first attempt.

    Raises:
        ConfigError: there is no such run.
        MismatchError: the run's record is damaged.
    """
    if not is_run_name(recipe):
        return recipe
    store = find_store(overrides)
    if recipe == LATEST and prefect_flow_run_id:
        for record in newest_runs(store):
            if record.prefect_flow_run_id == prefect_flow_run_id and record.origin:
                return record.origin
    pinned = load_run(store, recipe).id
    if pinned != recipe:
        log.info("%s is run %s", recipe, pinned)
    return pinned


def merge_overrides(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Concatenate two lists of overrides; drop those of the first that the second replaces."""
    given = {override.partition("=")[0] for override in second}
    return [*(each for each in first if each.partition("=")[0] not in given), *second]
