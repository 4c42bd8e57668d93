"""The pipeline in the process of the command line, which shows the run itself."""

from collections.abc import Sequence

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker

from flows.full_pipeline import full_pipeline

FLUSH_SECONDS = 10.0


def run_pipeline(recipe: str, overrides: Sequence[str]) -> str:
    """Run the pipeline, flush events and logs to Prefect's server, and return the run's id.

    Raises:
        LongredError: as raised by the stages.
    """
    try:
        return full_pipeline(recipe, list(overrides))
    finally:
        EventsWorker.drain_all(timeout=FLUSH_SECONDS)
        APILogWorker.drain_all(timeout=FLUSH_SECONDS)
