"""Runs the flows for the command line: finds the `flows` folder and provides a Prefect server.

The only file of `longred/` that imports `flows`, and only inside functions.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from longred.errors import PreflightError
from longred.services import servers as services
from longred.services.prefect_api import ask
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
    """Call the full pipeline inside a dry scope, without a server.

    Raises:
        LongredError: a stage refused its input.
    """
    _make_importable()
    from flows.pipeline import full_pipeline

    full_pipeline.fn(recipe, list(overrides))


def _make_importable() -> None:
    if (root := str(repository())) not in sys.path:
        sys.path.insert(0, root)


@contextlib.contextmanager
def _server(root: Path) -> Iterator[None]:
    """Select a Prefect server: $PREFECT_API_URL, the store's own, or a temporary one."""
    # `Terminal` prints the stages; Prefect's own log lines go to its server only.
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    os.environ["PREFECT_LOGGING_EXTRA_LOGGERS"] = "longred"
    if api := os.environ.get("PREFECT_API_URL"):
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
