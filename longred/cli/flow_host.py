"""Where flows run for the command line: finds them, and gives them a Prefect server.

The one door from the library to the orchestration around it; it imports `flows` when a flow is to
run.
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
    """Return the folder that holds `flows`: that of an editable installation, or the current one.

    Raises:
        PreflightError: neither has them.
    """
    for folder in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (folder / "flows" / "pipeline.py").is_file():
            return folder
    raise PreflightError(
        "flows/pipeline.py: is neither beside the installed package nor in the current folder; "
        "run this from a clone of the repository"
    )


def run_pipeline(store: Store, recipe: str, overrides: Sequence[str]) -> str:
    """Run the full pipeline in this process and return the run's id.

    Raises:
        LongredError: as the stages do, or because Prefect's server does not start.
    """
    _make_importable()
    with _server(store.root):
        from flows.local import run_pipeline as run

        return run(recipe, overrides)


def tell_pipeline(recipe: str, overrides: Sequence[str]) -> None:
    """Go through the full pipeline inside a dry scope, without a server: nothing is made.

    Raises:
        LongredError: as the stages do.
    """
    _make_importable()
    from flows.pipeline import full_pipeline

    full_pipeline.fn(recipe, list(overrides))


def _make_importable() -> None:
    root = str(repository())
    if root not in sys.path:
        sys.path.insert(0, root)


@contextlib.contextmanager
def _server(root: Path) -> Iterator[None]:
    """Give flows a Prefect server: the one the user names, the store's own, or a temporary one."""
    # The terminal shows the stages in its own way; Prefect's lines go to its server.
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    os.environ["PREFECT_LOGGING_EXTRA_LOGGERS"] = "longred"
    if api := os.environ.get("PREFECT_API_URL"):
        if ask(f"{api}/flows/count", {}) is None:
            raise PreflightError(
                f"PREFECT_API_URL: no Prefect server answers at {api}, or it refuses the name and "
                "password in PREFECT_API_AUTH_STRING; without the variable a server is found or "
                "started here"
            )
        yield
        return
    os.environ.update(prefect_environment(root))
    running = services.prefect_url(root)
    if running:
        os.environ["PREFECT_API_URL"] = running
        yield
        return
    with temporary_server(root) as server:
        os.environ["PREFECT_API_URL"] = server.url
        # It has no pages, and a link to them would outlive it.
        os.environ["PREFECT_UI_URL"] = ""
        # Both take seconds, and there are two cores.
        import flows.local  # noqa: F401

        server.wait()
        yield
