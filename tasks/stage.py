"""What every task shares: when it is tried again, and how progress and reused work are shown."""

import contextvars
import signal
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, cast

import httpx
from prefect import task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.states import Completed
from prefect.tasks import Task

from longred.errors import Stopped
from longred.progress import Progress
from longred.runs.record import RunRecord, StageRecord
from longred.runs.session import current_run
from longred.store.artifacts import Artifact, Store

P = ParamSpec("P")

PROGRESS_SECONDS = 5.0
LOG_SECONDS = 30.0
END_SECONDS = 5.0


def is_worth_another_try(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Return whether a stage failed by losing its process, or by a preemption nobody asked for.

    A user's stop reaches this process and not only the trainer: it arrives as Prefect's own signal,
    or as SIGINT. Wrong settings, a full disk and a non-finite loss would only happen again.
    """
    from longred.errors import LostProcessError

    error = state.data
    preempted = isinstance(error, Stopped) and error.signal_number == signal.SIGTERM
    return preempted or isinstance(error, LostProcessError)


def stage_task(
    name: str,
) -> Callable[[Callable[P, State[Artifact] | Artifact]], Callable[P, Artifact]]:
    """Make a Prefect task of a function that makes one artifact.

    Args:
        name: name of its runs; `{parameter}` stands for an argument.
    """

    def decorate(function: Callable[P, State[Artifact] | Artifact]) -> Callable[P, Artifact]:
        # No tags: before a tagged task Prefect asks its server for the tags' limits, and waits two
        # seconds whenever the server's database is busy.
        tried = task(
            task_run_name=name,
            retries=2,
            retry_delay_seconds=[2, 30],
            retry_condition_fn=is_worth_another_try,
            # What is finished is decided by manifests in the store, which also see a deleted file.
            cache_policy=NO_CACHE,
            persist_result=False,
        )(function)

        @wraps(function)
        def call(*arguments: P.args, **settings: P.kwargs) -> Artifact:
            if current_run().is_dry:
                # Nothing is made, so there is nothing for Prefect to show or to try again.
                return cast(Artifact, function(*arguments, **settings))
            # A state that a task returns would otherwise reach the caller in place of its artifact.
            state: State[Any] = tried(*arguments, **settings, return_state=True)
            artifact: Artifact = state.result()
            return artifact

        return call

    return decorate


def make(
    name: str, call: Callable[[Store, Progress], Artifact], *, shows_progress: bool = False
) -> State[Artifact] | Artifact:
    """Make one stage's artifact in the open run; one that existed is shown as Skipped.

    Args:
        name: the stage's name in the run.
        call: the stage, given the store and a progress callback.
        shows_progress: whether the stage reports progress.
    """
    run = current_run()
    if run.is_dry:
        return run.make(name, call)
    progress = StageProgress(name) if shows_progress else None
    try:
        artifact = run.make(name, call, on_progress=progress, prefect_task_run_id=str(task_run.id))
        if progress:
            progress.finish()
    finally:
        if progress:
            progress.end()
    record = run.record.stages[-1]
    _describe(artifact, record, run.record)
    if record.status in _STATES:
        state, message = _STATES[record.status]
        return Completed(name=state, message=f"{artifact.digest} {message}", data=artifact)
    return artifact


_STATES = {
    "skipped": ("Skipped", "was made before"),
    "stale": ("Stale", "is not made by this run; a run of the full pipeline makes it"),
}
"""How Prefect shows a stage that did not have to run: name and message of its state."""


class StageProgress:
    """Shows a stage's progress in a Prefect progress artifact, and now and then in its log.

    Prefect is told by a thread of its own: a server that is away must not hold up the stage.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._percent = 0.0
        self._shown = self._logged = float("-inf")
        self._wake = threading.Event()
        self._ended = False
        # The thread works for the task run of the one that made it.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._follow,), daemon=True)

    def __call__(self, done: int, total: int, text: str) -> None:
        """Show `done` of `total`, not more often than is useful."""
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            get_run_logger().info("%s: %d of %d, %s", self._name, done, total, text)
        if now - self._shown >= PROGRESS_SECONDS:
            self._shown = now
            self._percent = 100.0 * done / max(total, 1)
            if self._thread.ident is None:
                self._thread.start()
            self._wake.set()

    def finish(self) -> None:
        """Show that all is done, where progress was shown at all."""
        self._percent = 100.0

    def end(self) -> None:
        """Stop showing; what is not shown by then may be left out."""
        self._ended = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(END_SECONDS)

    def _follow(self) -> None:
        artifact: Any = None
        while not self._ended or self._wake.is_set():
            self._wake.wait()
            self._wake.clear()
            try:
                if artifact is None:
                    artifact = create_progress_artifact(
                        self._percent, key=_key("progress", self._name), description=self._name
                    )
                else:
                    update_progress_artifact(artifact, self._percent)
            except httpx.HTTPError as error:
                get_run_logger().warning("progress could not be shown: %s", error)


def _describe(artifact: Artifact, record: StageRecord, run: RunRecord) -> None:
    """Leave a note with the artifact's identity, place and reason in Prefect."""
    lines = [
        f"# {record.name}",
        "| | |",
        "|---|---|",
        f"| digest | `{artifact.digest}` |",
        f"| folder | `{artifact.path}` |",
        f"| status | {record.status} |",
        f"| why it was made | {record.reason or 'it was there already'} |",
        f"| run | `{run.id}` {f'from `{run.origin}`' if run.origin else ''} |",
        f"| MLflow | {f'[run]({run.mlflow_url})' if run.mlflow_url else 'on this disk alone'} |",
    ]
    try:
        create_markdown_artifact(
            "\n".join(lines), key=_key("stage", record.name), description=record.name
        )
    except httpx.HTTPError as error:
        get_run_logger().warning("the artifact could not be described: %s", error)


def _key(kind: str, name: str) -> str:
    """Return a key of the letters that Prefect allows."""
    return f"longred-{kind}-{name}".replace("/", "-").replace("_", "-").replace(".", "-").lower()
