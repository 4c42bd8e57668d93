"""Background thread that sends a run to MLflow; it never stops the run and never loses data.

Everything is read from `run.json` and the journals on each pass. A server that was away is updated
later, by this run or the next one; sending a metric point twice stores it once.
"""

import logging
import threading
import time
from collections.abc import Iterator
from itertools import islice

from longred.config import TrackingConfig
from longred.errors import LongredError
from longred.runs.mirror import Mirror
from longred.runs.mlflow_home import local_uri, unreachable
from longred.runs.record import RunRecord, StageRecord, mark_lost, newest_runs
from longred.runs.run_store import RunStore

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
RETRY_SECONDS = 20.0
START_SECONDS = 20.0
FINISH_SECONDS = 60.0
NUM_EARLIER_RUNS = 10


class Follower:
    """Listener that sends one run to MLflow on its own thread.

    Args:
        store: the store of the run; its record receives MLflow's ids.
        tracking: location of MLflow.
        page: URL of the MLflow server that shows the store's own database; empty if none runs.
    """

    def __init__(self, store: RunStore, tracking: TrackingConfig, page: str = "") -> None:
        self._store = store
        self._tracking = tracking
        self._page = page
        self._wake = threading.Event()
        self._tried = threading.Event()
        self._ending = False
        self._warned = False
        self._thread = threading.Thread(target=self._follow, name="longred-mlflow", daemon=True)

    def start(self) -> None:
        """Start the thread and wait briefly for the first contact.

        The wait also keeps MLflow's imports from competing with those of the first stage.
        """
        self._thread.start()
        self._tried.wait(START_SECONDS)

    def changed(self, run: RunRecord) -> None:
        """Wake the thread: a stage or the run started or ended."""
        self._wake.set()

    def progressed(self, stage: StageRecord, done: int, total: int, text: str) -> None:
        """Do nothing: progress reaches MLflow through the journals."""

    def finish(self) -> None:
        """Send the rest within `FINISH_SECONDS`."""
        self._ending = True
        self._wake.set()
        if self._thread.ident is None:
            return
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._warn("it takes too long")

    def _follow(self) -> None:
        errors = unreachable()
        mirror: Mirror | None = None
        next_try = 0.0
        while True:
            ending = self._ending
            if ending or time.monotonic() >= next_try:
                try:
                    mirror = mirror or Mirror(self._store.root, self._tracking, self._page)
                    if mirror.show(self._store.record):
                        self._store.save()
                    if ending:
                        self._show_earlier_runs(mirror, errors)
                except LongredError as error:
                    self._say(f"MLflow is left out, the run continues: {error}")
                    next_try = time.monotonic() + RETRY_SECONDS
                except errors as error:
                    self._warn(str(error).strip().partition("\n")[0])
                    next_try = time.monotonic() + RETRY_SECONDS
            self._tried.set()
            if ending:
                return
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _show_earlier_runs(self, mirror: Mirror, errors: tuple[type[Exception], ...]) -> None:
        """Send the newest earlier runs that MLflow lacks.

        It was away, their process died, or they reused all artifacts.
        """
        for record in islice(self._lacking(), NUM_EARLIER_RUNS):
            try:
                mirror.show(record)
            except LongredError as error:
                log.warning("run %s cannot be sent to MLflow: %s", record.id, error)
            except errors as error:
                log.info("run %s could not be sent to MLflow: %s", record.id, error)
            record.save(self._store.runs)

    def _lacking(self) -> Iterator[RunRecord]:
        """Yield the ended runs of this MLflow that it lacks, newest first."""
        tracking = self._store.record.config["tracking"]
        for record in newest_runs(self._store):
            mark_lost(self._store, record)
            is_ended = record.status != "running"
            if is_ended and not record.in_mlflow and record.config["tracking"] == tracking:
                yield record

    def _warn(self, reason: str) -> None:
        self._say(
            f"MLflow at {self._tracking.uri or local_uri(self._store.root)} does not answer "
            f"({reason}); the run continues, its metrics are saved in the journals and sent later"
        )

    def _say(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s", text)
