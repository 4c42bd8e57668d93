"""A run that is open: how its stages are made and recorded, and who is told.

`open_run` makes a run current; `Run.make` is how a stage of it is made. Whoever shows a run (the
terminal, MLflow) listens to it and never holds it up.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import Protocol

from longred.config import RunConfig
from longred.errors import LongredError, Stopped
from longred.progress import Progress
from longred.runs.record import (
    RunRecord,
    StageRecord,
    earlier_runs,
    is_run_name,
    load_run,
    merge_overrides,
    process_identity,
)
from longred.runs.scope import Begun, Scope, ScopedStore
from longred.store.artifacts import Artifact, Store, canonical_digest, make_folder
from longred.store.remote import Remote


class Listener(Protocol):
    """Someone who shows a run; called by the thread that works: returns at once, never raises."""

    def changed(self, run: RunRecord) -> None:
        """A stage or the run began or ended."""

    def progressed(self, stage: StageRecord, done: int, total: int, text: str) -> None:
        """A stage got on."""


class Watcher:
    """A listener that keeps the stages of the run it has seen last."""

    def __init__(self) -> None:
        self.stages: list[StageRecord] = []

    def changed(self, run: RunRecord) -> None:
        """Keep the stages."""
        self.stages = run.stages

    def progressed(self, stage: StageRecord, done: int, total: int, text: str) -> None:
        """Progress is nothing to keep."""


class Run:
    """An open run: makes stages and keeps the record.

    Args:
        record: the run's record.
        root: the store's root folder.
        scope: which stages are made.
        listeners: who shows the run.
        remote: where artifacts are kept too, if anywhere.

    Attributes:
        record: written to disk at every change, unless the run is dry.
        store: where its stages put their artifacts.
        is_dry: whether it only tells what would be made.
        before_making: called with the name of a stage that is about to be made; may refuse it.
    """

    def __init__(
        self,
        record: RunRecord,
        root: Path,
        scope: Scope,
        listeners: Sequence[Listener],
        remote: Remote | None = None,
    ) -> None:
        self.record = record
        self.store = ScopedStore(root, scope, self._note, self._previous_digest, remote)
        self.is_dry = scope.is_dry
        self.before_making: Callable[[str], None] = lambda stage: None
        self._listeners = list(listeners)
        self._lock = threading.Lock()

    def listen(self, listener: Listener) -> None:
        """Add a listener."""
        self._listeners.append(listener)

    def save(self) -> None:
        """Write the record; safe to call from a listener's own thread."""
        if self.is_dry:
            return
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
                stage.status = self._status(artifact)
                stage.digest = artifact.digest
                stage.path = None if stage.status == "stale" else artifact.path
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

    def _status(self, artifact: Artifact) -> str:
        if artifact.digest in self.store.told:
            return "stale"
        return "skipped" if artifact.reused else "ran"

    def _note(self, begun: Begun) -> None:
        if self.record.stages and self.record.stages[-1].status == "running":
            stage = self.record.stages[-1]
            stage.digest, stage.work, stage.reason = begun.digest, str(begun.work), begun.reason
            self.save()
        if not self.is_dry and self.store.scope.fate(begun.stage, begun.reason) == "runs":
            self.before_making(begun.stage)

    @cached_property
    def _previous(self) -> dict[str, str]:
        """Digest of each stage, by name, in the newest run of the same recipe that had one."""
        found: dict[str, str] = {}
        for record in earlier_runs(self.store, self.record):
            for name, stage in record.last_attempts().items():
                if stage.digest is not None and stage.status in ("ran", "skipped"):
                    found.setdefault(name, stage.digest)
        return found

    def _previous_digest(self) -> str | None:
        return self._previous.get(self.record.stages[-1].name) if self.record.stages else None


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
_scope: ContextVar[Scope] = ContextVar("longred_scope", default=Scope())  # noqa: B039 - frozen


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
def scoped(scope: Scope) -> Iterator[None]:
    """Let every run opened inside the block make only a part of the pipeline."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)


@contextlib.contextmanager
def open_run(
    config: RunConfig,
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    start_from: str | None = None,
    prefect_flow_run_id: str | None = None,
    prefect_url: str | None = None,
    mlflow_page: str = "",
) -> Iterator[Run]:
    """Start a run and make it current; its end is recorded honestly, however the block is left.

    Inside `scoped(Scope(is_dry=True))` the run writes nothing and tells nobody but its listeners.

    Args:
        config: what it is made with.
        recipe: where that was read from; an earlier run is named in the record as its origin.
        overrides: the changes to it.
        start_from: the stage from which on everything is made again, if any.
        prefect_flow_run_id: the Prefect flow run that this is.
        prefect_url: the page of it.
        mlflow_page: address of the MLflow server that shows the store's own database, if one runs.

    Raises:
        ConfigError: the stage to start from is unknown.
        StorageError: the store cannot be written.
    """
    from longred.runs.follower import Follower

    store = Store(config.store.path)
    root = store.root
    remote = Remote(config.store.remote) if config.store.remote else None
    scope = _scope.get().starting(start_from)
    origin = load_run(store, recipe) if is_run_name(recipe) else None
    record = RunRecord(
        id="dry-run" if scope.is_dry else _new_id(root / "runs", config.name),
        recipe=origin.recipe if origin else recipe,
        overrides=merge_overrides(origin.overrides if origin else (), overrides),
        config=config.model_dump(mode="json"),
        digest=canonical_digest(config.digest_values())[:16],
        started=time.time(),
        process=process_identity(),
        prefect_flow_run_id=prefect_flow_run_id,
        prefect_url=prefect_url,
        origin=origin.id if origin else None,
        part=scope.part,
    )
    run = Run(record, root, scope, _listening.get(), remote)
    run.save()
    follower = (
        None if scope.is_dry else Follower(record, run.save, store, config.tracking, mlflow_page)
    )
    token = _current.set(run)
    try:
        with _outcome(record):
            if follower:
                run.listen(follower)
                follower.start()
            yield run
            record.status = "finished"
    finally:
        _current.reset(token)
        try:
            run.end()
        finally:
            if follower:
                follower.finish()


def _new_id(runs: Path, name: str) -> str:
    """Return the name of a new, empty run folder; names sort by age, so no two share a second."""
    make_folder(runs)
    while any(runs.glob(f"{(stamp := time.strftime('%Y%m%d-%H%M%S', time.gmtime()))}-*")):
        time.sleep(0.05)
    run_id = f"{stamp}-{name}-{secrets.token_hex(2)}"
    (runs / run_id).mkdir()
    return run_id
