"""The flows in the process of the command line, which shows the run itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker

from flows.full_pipeline import full_pipeline

FLUSH_SECONDS = 10.0


def run_pipeline(recipe: str, overrides: Sequence[str]) -> str:
    """Run the pipeline, flush events and logs to Prefect's server, and return the run's id.

    Raises:
        LongredError: as raised by the stages.
    """
    with _flushed():
        return full_pipeline(recipe, list(overrides))


def run_study(name: str, slots: int | None, only: Sequence[str]) -> str:
    """Run a study, flush events and logs, and return the folder of its artifact.

    Raises:
        LongredError: the study is wrong, or runs failed.
    """
    # Imported here: it imports torch, which a run of the pipeline need not wait for.
    from flows.study import study

    with _flushed():
        return study(name, slots, list(only))


@contextmanager
def _flushed() -> Iterator[None]:
    """Flush to Prefect's server while it is there; at exit, Prefect waits for one that left."""
    try:
        yield
    finally:
        EventsWorker.drain_all(timeout=FLUSH_SECONDS)
        APILogWorker.drain_all(timeout=FLUSH_SECONDS)
