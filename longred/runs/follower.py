"""Shows runs in MLflow: follows a run's record and journals, and never stops or loses work.

What MLflow should hold is read from `run.json` and the journals every time, so a server that was
away is caught up with later, by this run or by the next one; logging a point twice stores it once.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from longred.config import TrackingConfig
from longred.runs.mirror import Mirror
from longred.runs.mlflow_home import connect, local_uri
from longred.runs.record import RunRecord, StageRecord, list_runs, load_run
from longred.store.artifacts import Store

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
RETRY_SECONDS = 20.0
START_SECONDS = 20.0
FINISH_SECONDS = 60.0
NUM_CAUGHT_UP = 3


def open_mirror(root: Path, tracking: TrackingConfig, page: str) -> Mirror:
    """Return what shows runs in an experiment, which is made if needed.

    Args:
        root: the store's root folder.
        tracking: where MLflow is.
        page: address of the MLflow server that shows the store's own database; empty if none.

    Raises:
        OSError, MlflowException, SQLAlchemyError, RequestException: MLflow cannot be reached.
    """
    client, experiment = connect(root, tracking)
    uri = tracking.uri or page
    return Mirror(client, experiment, uri if uri.startswith("http") else "")


def unreachable() -> tuple[type[Exception], ...]:
    """Return the errors by which MLflow says that it cannot be reached or refuses."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, RequestException, SQLAlchemyError, OSError)


class Follower:
    """Follows one run on a thread of its own.

    Args:
        record: the run's record; it receives MLflow's ids.
        save: writes the record to disk.
        store: the store of the run.
        tracking: where MLflow is.
        page: address of the MLflow server that shows the store's own database; empty if none.
    """

    def __init__(
        self,
        record: RunRecord,
        save: Callable[[], None],
        store: Store,
        tracking: TrackingConfig,
        page: str = "",
    ) -> None:
        self._record = record
        self._save = save
        self._store = store
        self._tracking = tracking
        self._page = page
        self._wake = threading.Event()
        self._tried = threading.Event()
        self._ending = False
        self._warned = False
        self._thread = threading.Thread(target=self._follow, name="longred-mlflow", daemon=True)

    def start(self) -> None:
        """Begin to follow; wait shortly for the first contact.

        The wait also keeps MLflow's imports from running beside those of the first stage.
        """
        self._thread.start()
        self._tried.wait(START_SECONDS)

    def changed(self, run: RunRecord) -> None:
        """Wake up: a stage or the run began or ended."""
        self._wake.set()

    def progressed(self, stage: StageRecord, done: int, total: int, text: str) -> None:
        """Progress reaches MLflow through the journals."""

    def finish(self) -> None:
        """Log what is left, for a bounded time."""
        self._ending = True
        self._wake.set()
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
                    mirror = mirror or open_mirror(self._store.root, self._tracking, self._page)
                    if mirror.show(self._record):
                        self._save()
                    if ending:
                        self._catch_up(mirror, errors)
                except errors as error:
                    self._warn(str(error).strip().partition("\n")[0])
                    next_try = time.monotonic() + RETRY_SECONDS
            self._tried.set()
            if ending:
                return
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _catch_up(self, mirror: Mirror, errors: tuple[type[Exception], ...]) -> None:
        """Show the newest earlier runs that MLflow has in part: it was away, or they died."""
        store, tracking = self._store, self._record.config["tracking"]
        for run_id in list_runs(store)[-NUM_CAUGHT_UP - 1 :]:
            record = load_run(store, run_id)
            if (
                record.in_mlflow
                or record.status == "running"
                or record.config["tracking"] != tracking
            ):
                continue
            try:
                mirror.show(record)
            except errors as error:
                log.info("the run %s could not be shown in MLflow: %s", run_id, error)
            record.save(store.runs)

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            place = self._tracking.uri or local_uri(self._store.root)
            log.warning(
                "MLflow at %s does not answer (%s); the work goes on, its metrics are kept in the "
                "journals and sent later",
                place,
                reason,
            )
