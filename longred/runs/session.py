"""The open run of this process: executes stages, records them and notifies listeners.

`open_run` makes a run current; a stage is executed by `Run.make`, which passes it the run's
`RunStore`. Listeners (the terminal, MLflow) show the run and must not block it.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

from longred.config import RunConfig
from longred.errors import ConfigError, LongredError, PreflightError, Stopped
from longred.progress import Progress
from longred.runs.follower import Follower
from longred.runs.record import (
    RunRecord,
    StageRecord,
    is_run_name,
    load_run,
    merge_overrides,
    process_identity,
)
from longred.runs.run_store import RunStore
from longred.runs.scope import Scope
from longred.store.artifacts import Artifact, Store, canonical_digest, make_folder
from longred.store.remote import Remote


class Listener(Protocol):
    """Shows a run; called by the working thread, so it must return at once and never raise."""

    def changed(self, run: RunRecord) -> None:
        """Handle the start or end of a stage or of the run."""

    def progressed(self, stage: StageRecord, done: int, total: int, text: str) -> None:
        """Handle the progress of a stage."""


class Watcher:
    """Listener that keeps the stages of the last run it has seen."""

    def __init__(self) -> None:
        self.stages: list[StageRecord] = []

    def changed(self, run: RunRecord) -> None:
        """Keep the stages."""
        self.stages = run.stages

    def progressed(self, stage: StageRecord, done: int, total: int, text: str) -> None:
        """Ignore progress."""


class Run:
    """An open run.

    Args:
        store: the store that stages build in; holds the record and the scope.
        listeners: objects that show the run.

    Attributes:
        record: written to disk at every change, unless the run is dry.
        is_dry: whether the run only reports what it would build.
    """

    def __init__(self, store: RunStore, listeners: Sequence[Listener]) -> None:
        self.store = store
        self.record = store.record
        self.is_dry = store.scope.is_dry
        self._listeners = listeners

    def make(
        self,
        name: str,
        make: Callable[[Store, Progress], Artifact],
        *,
        on_progress: Progress | None = None,
        prefect_task_run_id: str | None = None,
    ) -> Artifact:
        """Execute one stage and record the outcome.

        Args:
            name: name of the stage in this run.
            make: the stage; called with the store and a progress callback.
            on_progress: additional progress callback.
            prefect_task_run_id: id of the Prefect task run.

        Raises:
            LongredError: as raised by `make`; the stage is recorded as failed or stopped.
        """
        stage = StageRecord(
            name,
            name.partition("/")[0],
            started=time.time(),
            prefect_task_run_id=prefect_task_run_id,
        )
        self.record.stages.append(stage)
        self.announce()

        def progressed(done: int, total: int, text: str) -> None:
            self.store.begin()
            for listener in self._listeners:
                listener.progressed(stage, done, total, text)
            if on_progress:
                on_progress(done, total, text)

        try:
            with _outcome(stage):
                artifact = make(self.store, progressed)
                stage.digest = artifact.digest
                # The status goes last: listeners' threads read the path once it is set.
                if artifact.digest in self.store.unbuilt:
                    stage.status = "stale"
                else:
                    stage.path = artifact.path
                    stage.status = "skipped" if artifact.reused else "ran"
        finally:
            stage.seconds = round(time.time() - stage.started, 3)
            self.announce()
        return artifact

    def reuse(self, stages: Sequence[StageRecord]) -> None:
        """Record stages that do not have to be executed."""
        self.record.stages += stages
        self.announce()

    def announce(self) -> None:
        """Save the record and notify the listeners, once the run has begun."""
        if not self.store.has_begun:
            return
        self.store.save()
        for listener in self._listeners:
            listener.changed(self.record)


@contextlib.contextmanager
def _outcome(record: StageRecord | RunRecord) -> Iterator[None]:
    """Record an error that leaves the block, and re-raise it."""
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
        # KeyboardInterrupt, or Prefect's own exception for SIGTERM.
        reason = f"stopped ({type(error).__name__}); run the same command to resume"
        record.status, record.error = "stopped", reason
        raise


_current: ContextVar[Run] = ContextVar("longred_run")
_options: ContextVar[tuple[Scope, tuple[Listener, ...]]] = ContextVar(
    "longred_run_options",
    default=(Scope(), ()),
)


def current_run() -> Run:
    """Return the open run.

    Raises:
        LookupError: no run is open; stages are executed inside `open_run`.
    """
    try:
        return _current.get()
    except LookupError:
        raise LookupError("no run is open; call the stage inside open_run") from None


def settings_digest(config: RunConfig) -> str:
    """Return the digest of the settings that can change a result, as a run's record has it."""
    return canonical_digest(config.digest_values())[:16]


def current_scope() -> Scope:
    """Return the scope of a run that would be opened here."""
    return _options.get()[0]


@contextlib.contextmanager
def run_options(
    *, scope: Scope | None = None, listener: Listener | None = None, is_only: bool = False
) -> Iterator[None]:
    """Set the scope of, and add a listener to, every run opened inside the block.

    Runs are opened inside Prefect flows, whose parameters are a form for users. With `is_only` the
    listener replaces those set outside of the block.
    """
    outer_scope, listeners = _options.get()
    if is_only:
        listeners = ()
    if listener is not None:
        listeners = (*listeners, listener)
    token = _options.set((scope or outer_scope, listeners))
    try:
        yield
    finally:
        _options.reset(token)


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
    is_followed: bool = True,
) -> Iterator[Run]:
    """Start a run and make it current; its outcome is recorded however the block ends.

    The run begins with the first stage that has to be built, or at the end of the block. A run that
    is refused or stopped before it begins leaves no record, so that wrong settings never become an
    earlier run. A dry run writes nothing and notifies only its listeners.

    Args:
        config: settings of the run.
        recipe: source of the settings; an earlier run is recorded as the origin.
        overrides: changes to the recipe.
        start_from: stage from which everything is rebuilt, if any.
        prefect_flow_run_id: id of the Prefect flow run.
        prefect_url: page of that flow run.
        mlflow_page: URL of the MLflow server that shows the store's own database, if one runs.
        is_followed: whether it is sent to MLflow now; otherwise a later run sends it.

    Raises:
        ConfigError: the stage to start from is unknown.
        StorageError: the store cannot be written.
    """
    scope, listeners = _options.get()
    scope = scope.starting(start_from)
    store = Store(config.store.path)
    remote = Remote(config.store.remote) if config.store.remote else None
    record = _new_record(config, recipe, overrides, store, scope)
    record.prefect_flow_run_id, record.prefect_url = prefect_flow_run_id, prefect_url
    run_store = RunStore(store.root, scope, record, remote)
    run_store.waits = config.store.wait
    follower = None
    if is_followed and not scope.is_dry:
        follower = Follower(run_store, config.tracking, mlflow_page)
    run = Run(run_store, (*listeners, follower) if follower else listeners)

    def begin() -> None:
        run.store.save()
        if follower:
            follower.start()
        if record.stages and record.stages[-1].status == "running":
            # The stage that begins now did not take the time until MLflow was reached.
            record.stages[-1].started = time.time()
        run.announce()

    run_store.on_begin = begin
    if scope.is_dry:
        run_store.begin()
    token = _current.set(run)
    is_recorded = True
    try:
        with _outcome(record):
            yield run
            record.status = "finished"
    except BaseException as error:
        is_recorded = run_store.has_begun or not _is_refusal(error)
        raise
    finally:
        _current.reset(token)
        record.finished = time.time()
        if not is_recorded:
            with contextlib.suppress(OSError):
                (store.runs / record.id).rmdir()
        else:
            try:
                run_store.begin()
                run.announce()
            finally:
                if follower:
                    follower.finish()


def _new_record(
    config: RunConfig, recipe: str, overrides: Sequence[str], store: Store, scope: Scope
) -> RunRecord:
    """Return the record of a run that starts now in this process."""
    origin = load_run(store, recipe) if is_run_name(recipe) else None
    return RunRecord(
        id="dry-run" if scope.is_dry else _new_id(store.runs, config.name),
        recipe=origin.recipe if origin else recipe,
        overrides=merge_overrides(origin.overrides if origin else (), overrides),
        config=config.model_dump(mode="json"),
        digest=settings_digest(config),
        started=time.time(),
        process=process_identity(),
        origin=origin.id if origin else None,
        part=scope.part,
    )


def _is_refusal(error: BaseException) -> bool:
    """Return whether an error says no to the settings or machine, or is a stop by a signal."""
    refusals = (ConfigError, PreflightError, Stopped)
    return isinstance(error, refusals) or not isinstance(error, Exception)


def _new_id(runs: Path, name: str) -> str:
    """Create an empty run folder and return its name; names sort by age, one per second."""
    make_folder(runs)
    while any(runs.glob(f"{(stamp := time.strftime('%Y%m%d-%H%M%S', time.gmtime()))}-*")):
        time.sleep(0.05)
    run_id = f"{stamp}-{name}-{secrets.token_hex(2)}"
    (runs / run_id).mkdir()
    return run_id
