"""Turn stage functions into Prefect tasks: retry policy, progress and links to reused work.

Prefect is imported when the first task runs: its import takes seconds, which a dry run saves.
"""

import contextlib
import contextvars
import inspect
import signal
import threading
import time
from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from longred.errors import LostProcessError, Stopped
from longred.progress import Progress
from longred.runs.record import RunRecord, StageRecord
from longred.runs.session import current_run
from longred.store.artifacts import Artifact, Store

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.tasks import Task

PROGRESS_SECONDS = 5.0
LOG_SECONDS = 30.0
END_SECONDS = 5.0
_STATES = {
    "skipped": ("Skipped", "existed already"),
    "stale": ("Stale", "is outside the scope of this run; a run of the full pipeline builds it"),
}
"""Name and message of the Prefect state of a stage that did not have to run."""


def is_worth_another_try(task: "Task[Any, Any]", run: "TaskRun", state: "State[Any]") -> bool:
    """Return whether a stage failed because its process was lost or preempted.

    A stop by the user reaches this process too, as Prefect's own signal or as SIGINT. Wrong
    settings, a full disk and a non-finite loss would only fail again.
    """
    error = state.data
    preempted = isinstance(error, Stopped) and error.signal_number == signal.SIGTERM
    return preempted or isinstance(error, LostProcessError)


def stage_task(
    stage: Callable[..., Artifact], name: str, **settings: Any
) -> Callable[..., Artifact]:
    """Turn a stage function into a Prefect task that executes it in the open run.

    The task takes the positional parameters of the stage and the keyword `at`, a suffix of the
    name for stages that a run executes several times. It passes `store` and, if the stage accepts
    it, `on_progress`. Its task runs are named after the stage, with a space in place of the slash;
    a stage that did not have to run ends as Skipped or Stale.

    Args:
        stage: one of the functions in `longred.stages`.
        name: name of the stage in a run; `{parameter}` is replaced by an argument.
        settings: further keyword arguments of the stage.
    """
    parameters = inspect.signature(stage).parameters
    positional = [each for each in parameters.values() if each.kind is not each.KEYWORD_ONLY]
    at_suffix = inspect.Parameter("at", inspect.Parameter.KEYWORD_ONLY, default="", annotation=str)
    signature = inspect.Signature([*positional, at_suffix], return_annotation=Artifact)
    shows_progress = "on_progress" in parameters

    @wraps(stage)
    def execute(*arguments: Any, **named: Any) -> "State[Artifact] | Artifact":
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()

        def make(store: Store, on_progress: Progress) -> Artifact:
            given = {**settings, "on_progress": on_progress} if shows_progress else settings
            return stage(*bound.args, store=store, **given)

        return _make(name.format(**bound.arguments), make, shows_progress=shows_progress)

    execute.__signature__ = signature

    @cache
    def prefect_task() -> "Task[Any, Any]":
        from prefect import task
        from prefect.cache_policies import NO_CACHE

        # No tags: before a tagged task Prefect asks its server for the tags' limits, and waits two
        # seconds whenever the server's database is busy.
        return task(
            task_run_name=name.replace("/", " "),
            retries=2,
            retry_delay_seconds=[2, 30],
            retry_condition_fn=is_worth_another_try,
            # Manifests in the store decide what is finished; they also notice a deleted file.
            cache_policy=NO_CACHE,
            persist_result=False,
        )(execute)

    @wraps(execute)
    def call(*arguments: Any, **named: Any) -> Artifact:
        if current_run().is_dry:
            # Nothing is built, so Prefect has nothing to show or retry.
            return execute(*arguments, **named)
        # A state that a task returns would otherwise reach the caller instead of its artifact.
        return prefect_task()(*arguments, **named, return_state=True).result()

    return call


def _make(
    name: str, make: Callable[[Store, Progress], Artifact], *, shows_progress: bool
) -> "State[Artifact] | Artifact":
    """Execute a stage in the open run; return the state to show if it did not have to run."""
    run = current_run()
    if run.is_dry:
        return run.make(name, make)
    from prefect.runtime import task_run
    from prefect.states import Completed

    with StageProgress(name) if shows_progress else contextlib.nullcontext() as progress:
        artifact = run.make(name, make, on_progress=progress, prefect_task_run_id=str(task_run.id))
    record = run.record.stages[-1]
    _describe(artifact, record, run.record)
    if record.status in _STATES:
        state, message = _STATES[record.status]
        return Completed(name=state, message=f"{artifact.digest} {message}", data=artifact)
    return artifact


class StageProgress:
    """Shows a stage's progress in a Prefect progress artifact and, less often, in its log.

    A separate thread talks to Prefect, so that a server that is away does not block the stage.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._percent = 0.0
        self._shown = self._logged = float("-inf")
        self._wake = threading.Event()
        self._ended = False
        # The thread acts for the task run that created it.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._follow,), daemon=True)

    def __call__(self, done: int, total: int, text: str) -> None:
        """Show `done` of `total` at a limited rate."""
        from prefect.logging import get_run_logger

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

    def __enter__(self) -> "StageProgress":
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        """Show 100 % after a success, if progress was shown at all; wait up to `END_SECONDS`."""
        if kind is None:
            self._percent = 100.0
        self._ended = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(END_SECONDS)

    def _follow(self) -> None:
        import httpx
        from prefect.artifacts import create_progress_artifact, update_progress_artifact
        from prefect.logging import get_run_logger

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
                get_run_logger().warning("progress could not be sent to Prefect: %s", error)


def _describe(artifact: Artifact, record: StageRecord, run: RunRecord) -> None:
    """Create a Prefect artifact with the digest, folder and reason of the stage's artifact."""
    import httpx
    from prefect.artifacts import create_markdown_artifact
    from prefect.logging import get_run_logger

    lines = [
        f"# {record.name}",
        "| | |",
        "|---|---|",
        f"| digest | `{artifact.digest}` |",
        f"| folder | `{artifact.path}` |",
        f"| status | {record.status} |",
        f"| why it ran | {record.reason or 'it existed already'} |",
        f"| run | `{run.id}` {f'from `{run.origin}`' if run.origin else ''} |",
        f"| MLflow | {f'[run]({run.mlflow_url})' if run.mlflow_url else 'no page yet'} |",
    ]
    try:
        create_markdown_artifact(
            "\n".join(lines), key=_key("stage", record.name), description=record.name
        )
    except httpx.HTTPError as error:
        get_run_logger().warning("the stage could not be described in Prefect: %s", error)


def _key(kind: str, name: str) -> str:
    """Return an artifact key with only the characters that Prefect allows."""
    return f"longred-{kind}-{name}".replace("/", "-").replace("_", "-").replace(".", "-").lower()
