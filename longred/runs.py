"""What a run is: a record of its stages, their artifacts and its ids in MLflow and Prefect.

`open_run` makes a run current; `Run.make` is how a stage of it is made and recorded. Whoever shows
a run (the terminal, MLflow) listens to it and never holds it up.
"""

import contextlib
import dataclasses
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from longred.artifacts import (
    Artifact,
    Store,
    canonical_digest,
    make_folder,
    read_json,
    write_json,
)
from longred.config import RunConfig, load_recipe
from longred.errors import ConfigError, LongredError, MismatchError, Stopped

Progress = Callable[[int, int, str], None]

STORE_VARIABLE = "LONGRED_STORE"
TRACKING_VARIABLE = "LONGRED_TRACKING_URI"
_VARIABLES = {STORE_VARIABLE: "store.path", TRACKING_VARIABLE: "tracking.uri"}
_RUN_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z0-9._-]+\Z")


def load_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe; the environment says where the store and MLflow are, unless an override does.

    Raises:
        ConfigError: the recipe, a key or a value is wrong; the message names the dotted key.
    """
    given = {override.partition("=")[0] for override in overrides}
    places = [
        f"{key}={os.environ[variable]}"
        for variable, key in _VARIABLES.items()
        if os.environ.get(variable) and key not in given
    ]
    return load_recipe(recipe, [*places, *overrides])


@dataclass
class StageRecord:
    """One attempt to make one stage's artifact.

    Attributes:
        name: `training/longred-c` where a stage makes several artifacts, else the stage's name.
        stage: the stage's name.
        status: running, ran, skipped, failed, stopped or lost.
        work: folder of resumable progress while it is made.
    """

    name: str
    stage: str
    status: str = "running"
    started: float = 0.0
    seconds: float | None = None
    digest: str | None = None
    path: str | None = None
    work: str | None = None
    mlflow_run_id: str | None = None
    prefect_task_run_id: str | None = None
    error: str | None = None


@dataclass
class RunRecord:
    """What `runs/<id>/run.json` holds; times are unix seconds.

    Attributes:
        digest: identity of the configuration, without what cannot change a result.
        status: running, finished, failed, stopped, or lost when its process is gone.
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
    mlflow_run_id: str | None = None
    prefect_flow_run_id: str | None = None
    in_mlflow: bool = False
    stages: list[StageRecord] = field(default_factory=list)

    def last_attempts(self) -> dict[str, StageRecord]:
        """Return the stages by name, in order, each as its last attempt left it."""
        return {stage.name: stage for stage in self.stages}

    def save(self, runs: Path) -> None:
        """Write the record so that a crash leaves the old or the new one."""
        write_json(runs / self.id / "run.json", dataclasses.asdict(self))


class Listener(Protocol):
    """Someone who shows a run; called by the thread that works: returns at once, never raises."""

    def changed(self, run: RunRecord) -> None:
        """A stage or the run began or ended."""

    def progressed(self, stage: StageRecord, done: int, total: int, text: str) -> None:
        """A stage got on."""


class RecordedStore(Store):
    """A store that tells the run which artifact the current stage makes, and where it works."""

    def __init__(self, root: Path | str, begun: Callable[[str, Path], None]) -> None:
        super().__init__(root)
        self._begun = begun

    def build(
        self,
        stage: str,
        values: Mapping[str, Any],
        inputs: Mapping[str, str],
        make: Callable[[Path, Path], None],
        version: int = 1,
    ) -> Artifact:
        """Return the artifact as `Store.build` does, after noting its digest."""
        digest = self.digest(stage, values, inputs, version)
        self._begun(digest, self.work(digest))
        return super().build(stage, values, inputs, make, version)


class Run:
    """An open run: makes stages and keeps the record.

    Attributes:
        record: the run's record, written to disk at every change.
        store: where its stages put their artifacts.
    """

    def __init__(self, record: RunRecord, root: Path, listeners: Sequence[Listener]) -> None:
        self.record = record
        self.store = RecordedStore(root, self._note_digest)
        self._listeners = list(listeners)
        self._lock = threading.Lock()

    def listen(self, listener: Listener) -> None:
        """Add a listener."""
        self._listeners.append(listener)

    def save(self) -> None:
        """Write the record; safe to call from a listener's own thread."""
        with self._lock:
            self.record.save(self.store.runs)

    def make(
        self,
        name: str,
        make: Callable[[Store, Progress], Artifact],
        *,
        on_progress: Progress | None = None,
        prefect_task_run_id: str | None = None,
    ) -> Artifact:
        """Make one stage's artifact and record how that went.

        Args:
            name: name of the stage in this run.
            make: the stage; called with the store and a progress callback.
            on_progress: also told of progress.
            prefect_task_run_id: the Prefect task run that this is.

        Raises:
            LongredError: as `make` does; the stage is recorded as failed, or as stopped.
        """
        stage = StageRecord(
            name,
            name.partition("/")[0],
            started=time.time(),
            prefect_task_run_id=prefect_task_run_id,
        )
        self.record.stages.append(stage)
        self._announce()

        def progressed(done: int, total: int, text: str) -> None:
            for listener in self._listeners:
                listener.progressed(stage, done, total, text)
            if on_progress:
                on_progress(done, total, text)

        try:
            with _outcome(stage):
                artifact = make(self.store, progressed)
                stage.digest, stage.path = artifact.digest, artifact.path
                stage.status = "skipped" if artifact.reused else "ran"
        finally:
            stage.seconds = round(time.time() - stage.started, 3)
            self._announce()
        return artifact

    def end(self) -> None:
        """Close the record."""
        self.record.finished = time.time()
        self._announce()

    def _announce(self) -> None:
        self.save()
        for listener in self._listeners:
            listener.changed(self.record)

    def _note_digest(self, digest: str, work: Path) -> None:
        if self.record.stages and self.record.stages[-1].status == "running":
            stage = self.record.stages[-1]
            stage.digest, stage.work = digest, str(work)
            self.save()


@contextlib.contextmanager
def _outcome(record: StageRecord | RunRecord) -> Iterator[None]:
    """Record how a block ended, where it did not end well, and let the error pass."""
    try:
        yield
    except LongredError as error:
        record.status = "stopped" if isinstance(error, Stopped) else "failed"
        record.error = str(error)
        raise
    except Exception as error:
        record.status, record.error = "failed", f"{type(error).__name__}: {error}"
        raise
    except BaseException as error:
        # KeyboardInterrupt and Prefect's own signal for SIGTERM.
        reason = f"stopped ({type(error).__name__}); run the same command to go on"
        record.status, record.error = "stopped", reason
        raise


_current: ContextVar[Run] = ContextVar("longred_run")
_listening: ContextVar[tuple[Listener, ...]] = ContextVar("longred_listeners", default=())


def current_run() -> Run:
    """Return the run that is open here.

    Raises:
        LookupError: no run is open; stages are made inside `open_run`.
    """
    try:
        return _current.get()
    except LookupError:
        raise LookupError("no run is open; call the stage inside open_run") from None


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Add a listener to every run opened inside the block."""
    token = _listening.set((*_listening.get(), listener))
    try:
        yield
    finally:
        _listening.reset(token)


@contextlib.contextmanager
def open_run(
    config: RunConfig,
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    prefect_flow_run_id: str | None = None,
) -> Iterator[Run]:
    """Start a run and make it current; its end is recorded honestly, however the block is left.

    Raises:
        StorageError: the store cannot be written.
    """
    from longred.follower import Follower

    root = Store(config.store.path).root
    record = RunRecord(
        id=_new_id(root / "runs", config.name),
        recipe=recipe,
        overrides=list(overrides),
        config=config.model_dump(mode="json"),
        digest=canonical_digest(config.digest_values())[:16],
        started=time.time(),
        process=process_identity(),
        prefect_flow_run_id=prefect_flow_run_id,
    )
    run = Run(record, root, _listening.get())
    run.save()
    follower = Follower(run, config.tracking)
    run.listen(follower)
    token = _current.set(run)
    try:
        with _outcome(record):
            follower.start()
            yield run
            record.status = "finished"
    finally:
        _current.reset(token)
        try:
            run.end()
        finally:
            follower.finish()


def _new_id(runs: Path, name: str) -> str:
    """Return the name of a new, empty run folder; names sort by age, so no two share a second."""
    make_folder(runs)
    while any(runs.glob(f"{(stamp := time.strftime('%Y%m%d-%H%M%S', time.gmtime()))}-*")):
        time.sleep(0.05)
    run_id = f"{stamp}-{name}-{secrets.token_hex(2)}"
    (runs / run_id).mkdir()
    return run_id


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
    path = store.runs / wanted / "run.json"
    values = read_json(path)
    try:
        stages = [StageRecord(**stage) for stage in values.pop("stages")]
        record = RunRecord(**values, stages=stages)
    except (KeyError, TypeError, AttributeError) as error:
        raise MismatchError(f"{path}: is not a run's record ({error})") from error
    if record.status == "running" and not is_alive(record.process):
        record.status = "lost"
        record.error = "its process ended without a word; run the same command to go on"
        for stage in record.stages:
            stage.status = "lost" if stage.status == "running" else stage.status
        record.save(store.runs)
    return record
