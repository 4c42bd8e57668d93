"""Runs the flows for the command line: finds the `flows` folder and provides a Prefect server.

The only file of `longred/` that imports `flows`, and only inside functions.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from longred.config import RunConfig
from longred.errors import PreflightError
from longred.runs.record import StageRecord, newest_runs
from longred.runs.session import Watcher, current_scope, open_run, run_options, settings_digest
from longred.services import servers as services
from longred.services.prefect_api import ask, chosen_api
from longred.services.temporary_server import prefect_environment, temporary_server
from longred.store.artifacts import Store


def repository() -> Path:
    """Return the folder that contains `flows/`: the clone, or the copy inside an installed wheel.

    Raises:
        PreflightError: the package was copied without either.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent, package / "_pipeline"):
        if (folder / "flows" / "pipeline.py").is_file():
            return folder
    raise PreflightError(
        f"flows/pipeline.py: stands neither beside {package} nor in {package / '_pipeline'}; "
        "this installation is incomplete, install longred again"
    )


def run_pipeline(store: Store, recipe: str, overrides: Sequence[str]) -> str:
    """Run the full pipeline in this process and return the run's id.

    Raises:
        LongredError: a stage failed, or Prefect's server did not start.
    """
    _make_importable()
    with _server(store.root):
        from flows.local import run_pipeline as run

        return run(recipe, overrides)


def dry_run_pipeline(recipe: str, overrides: Sequence[str]) -> None:
    """Call the stages of the pipeline inside a dry scope, without Prefect.

    Raises:
        LongredError: a stage refused its input.
    """
    _make_importable()
    from flows.pipeline import run_stages

    run_stages(recipe, overrides)


def reuse_pipeline(config: RunConfig, recipe: str, overrides: Sequence[str]) -> str | None:
    """Record a run whose artifacts all exist, without Prefect; return its id.

    MLflow learns of it from the next run that builds something. Where a Prefect server runs, or
    artifacts have copies elsewhere, the run takes the ordinary way, so that both know of it too.

    Args:
        config: settings of the recipe with the overrides.
        recipe: name or file of a recipe, or the id of an earlier run.
        overrides: changes to the recipe.

    Returns:
        The id; None if something has to be built, or no run with these settings has finished yet.

    Raises:
        LongredError: a stage refused its input.
    """
    store = Store(config.store.path)
    if config.store.remote or chosen_api() or services.prefect_url(store.root):
        return None
    digest = settings_digest(config)
    if not any(run.digest == digest and run.status == "finished" for run in newest_runs(store)):
        # Hashing a large model and its text only to find nothing would take minutes.
        return None
    scope = current_scope()
    watcher = Watcher()
    with run_options(scope=replace(scope, is_dry=True), listener=watcher, is_only=True):
        dry_run_pipeline(recipe, overrides)
    fates = [scope.fate(stage.stage, stage.reason) for stage in watcher.stages]
    if not set(fates) <= {"skipped", "stale"}:
        return None
    with open_run(config, recipe, overrides, is_followed=False) as run:
        run.reuse(watcher.stages)
    return run.record.id


def run_study(store: Store, study: str, slots: int | None, only: Sequence[str]) -> str:
    """Run a study in this process; return the folder of its artifact.

    Raises:
        LongredError: the study is wrong, or runs failed.
    """
    _make_importable()
    with _server(store.root):
        from flows.local import run_study as run

        return run(study, slots, only)


def look_up(recipe: str, overrides: Sequence[str]) -> Sequence[StageRecord]:
    """Return the stages of a run as a dry run finds them, without Prefect.

    Raises:
        LongredError: a stage refused its input.
    """
    _make_importable()
    from flows.pipeline import look_up

    return look_up(recipe, overrides)


def _make_importable() -> None:
    if (root := str(repository())) not in sys.path:
        sys.path.insert(0, root)


@contextlib.contextmanager
def _server(root: Path) -> Iterator[None]:
    """Select a Prefect server: $PREFECT_API_URL, the store's own, or a temporary one."""
    # `Terminal` prints the stages; Prefect's own log lines go to its server only.
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    os.environ["PREFECT_LOGGING_EXTRA_LOGGERS"] = "longred"
    if api := chosen_api():
        if ask(f"{api}/flows/count", {}) is None:
            raise PreflightError(
                f"PREFECT_API_URL: no Prefect server answers at {api}, or it refuses the name and "
                "password in PREFECT_API_AUTH_STRING; unset the variable to use the store's own "
                "server or a temporary one"
            )
        yield
        return
    os.environ.update(prefect_environment(root))
    if running := services.prefect_url(root):
        os.environ["PREFECT_API_URL"] = running
        yield
        return
    with temporary_server(root) as server:
        os.environ["PREFECT_API_URL"] = server.url
        # A temporary server has no pages to link to.
        os.environ["PREFECT_UI_URL"] = ""
        # Import while the server starts: both take seconds.
        import flows.local  # noqa: F401

        server.wait()
        yield
