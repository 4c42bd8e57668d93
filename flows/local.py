"""The pipeline in this very process, for a command line that shows the run itself."""

from collections.abc import Sequence

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker

from flows.pipeline import full_pipeline

FLUSH_SECONDS = 10.0


def run_pipeline(recipe: str, overrides: Sequence[str]) -> str:
    """Run the pipeline and return the run's id; when this ends, the server knows what happened.

    Raises:
        LongredError: as the stages do.
    """
    try:
        return full_pipeline(recipe, list(overrides))
    finally:
        EventsWorker.drain_all(timeout=FLUSH_SECONDS)
        APILogWorker.drain_all(timeout=FLUSH_SECONDS)
