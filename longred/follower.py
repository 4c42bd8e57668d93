"""Shows runs in MLflow: follows a run's record and journals, and never stops or loses work.

What MLflow should hold is read from `run.json` and the journals every time, so a server that was
away is caught up with later, by this run or by the next one; logging a point twice stores it once.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longred.config import TrackingConfig
from longred.tracking import JOURNAL_NAME, read_lines

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from longred.runs import RunRecord, StageRecord
    from longred.session import Run

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
RETRY_SECONDS = 20.0
START_SECONDS = 20.0
FINISH_SECONDS = 60.0
NUM_CAUGHT_UP = 3
UPLOAD_SUFFIXES = {".json", ".jsonl", ".md", ".html", ".svg", ".png", ".txt"}
UPLOAD_BYTES = 1 << 20
_STATUS = {"failed": "FAILED", "stopped": "KILLED", "lost": "KILLED"}

# Without these an unreachable server holds each call for minutes.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def local_uri(root: Path) -> str:
    """Return the tracking URI of a store's own SQLite file."""
    return f"sqlite:///{root / 'mlflow.db'}"


def artifact_folder(root: Path) -> Path:
    """Return where a store's own MLflow keeps uploaded artifacts."""
    return root / "mlflow-artifacts"


def connect(root: Path, tracking: TrackingConfig) -> tuple["MlflowClient", str]:
    """Return a client and the id of the experiment, made if needed.

    The store's own database is migrated here, under a lock: two processes at once would break it.

    Raises:
        OSError, MlflowException, SQLAlchemyError, RequestException: MLflow cannot be reached.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    root.mkdir(parents=True, exist_ok=True)
    with (root / "mlflow.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(tracking.uri or local_uri(root))
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is not None:
            return client, str(experiment.experiment_id)
        # A database alone would put uploads below whatever the current folder is.
        served = (tracking.uri or "").startswith("http")
        folder = None if served else artifact_folder(root).as_uri()
        return client, str(client.create_experiment(tracking.experiment, artifact_location=folder))


def _unreachable() -> tuple[type[Exception], ...]:
    """Return the errors by which MLflow says that it cannot be reached or refuses."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, RequestException, SQLAlchemyError, OSError)


class Follower:
    """Follows one run on a thread of its own.

    Args:
        run: the run; its record receives MLflow's ids.
        tracking: where MLflow is.
    """

    def __init__(self, run: "Run", tracking: TrackingConfig) -> None:
        self._run = run
        self._tracking = tracking
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

    def changed(self, run: "RunRecord") -> None:
        """Wake up: a stage or the run began or ended."""
        self._wake.set()

    def progressed(self, stage: "StageRecord", done: int, total: int, text: str) -> None:
        """Progress reaches MLflow through the journals."""

    def finish(self) -> None:
        """Log what is left, for a bounded time."""
        self._ending = True
        self._wake.set()
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._warn("it takes too long")

    def _follow(self) -> None:
        unreachable = _unreachable()
        mirror: Mirror | None = None
        next_try = 0.0
        while True:
            ending = self._ending
            if ending or time.monotonic() >= next_try:
                try:
                    mirror = mirror or Mirror(*connect(self._run.store.root, self._tracking))
                    if mirror.show(self._run.record):
                        self._run.save()
                    if ending:
                        self._catch_up(mirror, unreachable)
                except unreachable as error:
                    self._warn(str(error).strip().partition("\n")[0])
                    next_try = time.monotonic() + RETRY_SECONDS
            self._tried.set()
            if ending:
                return
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _catch_up(self, mirror: "Mirror", unreachable: tuple[type[Exception], ...]) -> None:
        """Show the newest earlier runs that MLflow has in part: it was away, or they died."""
        from longred.runs import list_runs, load_run

        store, tracking = self._run.store, self._run.record.config["tracking"]
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
            except unreachable as error:
                log.info("the run %s could not be shown in MLflow: %s", run_id, error)
            record.save(store.runs)

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            place = self._tracking.uri or local_uri(self._run.store.root)
            log.warning(
                "MLflow at %s does not answer (%s); the work goes on, its metrics are kept in the "
                "journals and sent later",
                place,
                reason,
            )


class Mirror:
    """What MLflow has been told so far, and the calls that bring it up to date."""

    def __init__(self, client: "MlflowClient", experiment_id: str) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._described: set[str] = set()
        self._ended: set[str] = set()
        self._sent: dict[str, set[tuple[str, int, float]]] = {}
        self._offsets: dict[str, int] = {}

    def show(self, run: "RunRecord") -> bool:
        """Bring MLflow up to date with a run; return whether the record changed."""
        before = (run.mlflow_run_id, run.in_mlflow, [s.mlflow_run_id for s in run.stages])
        ended = run.status == "lost" or (run.status != "running" and run.finished is not None)
        self._show_parent(run)
        for stage in list(run.stages):
            self._show_stage(run, stage)
        if ended and not run.in_mlflow:
            self._end_parent(run)
            run.in_mlflow = True
        return before != (run.mlflow_run_id, run.in_mlflow, [s.mlflow_run_id for s in run.stages])

    def _show_parent(self, run: "RunRecord") -> None:
        if run.mlflow_run_id is None:
            tags = {
                "longred.run": run.id,
                "longred.recipe": run.recipe,
                "longred.digest": run.digest,
            }
            tags["prefect.flow_run_id"] = run.prefect_flow_run_id or ""
            run.mlflow_run_id = self._create(run.id, run.started, tags)
        if run.mlflow_run_id not in self._described and not run.in_mlflow:
            # Where a run was kept and shown is no difference between runs.
            compared = {k: v for k, v in run.config.items() if k not in ("store", "tracking")}
            self._log_params(run.mlflow_run_id, flatten(compared))
            self._client.log_dict(run.mlflow_run_id, run.config, "config.json")
            self._described.add(run.mlflow_run_id)

    def _show_stage(self, run: "RunRecord", stage: "StageRecord") -> None:
        status = stage.status
        if stage.mlflow_run_id is None:
            tags = {"mlflow.parentRunId": run.mlflow_run_id or "", "longred.run": run.id}
            tags |= _stage_tags(run, stage, status)
            stage.mlflow_run_id = self._create(stage.name, stage.started, tags)
        child = stage.mlflow_run_id
        if child in self._ended:
            return
        if child not in self._described:
            self._log_params(child, _stage_params(run, stage))
            self._described.add(child)
        if status == "running":
            self._send_live(child, stage)
            return
        for name, value in _stage_tags(run, stage, status).items():
            self._client.set_tag(child, name, value)
        if status == "ran" and stage.path:
            folder = Path(stage.path)
            self._send(child, read_lines(folder / JOURNAL_NAME, 0)[0])
            self._upload(child, folder)
        elif stage.work:
            self._send(child, read_lines(Path(stage.work) / JOURNAL_NAME, 0)[0])
        end = stage.started + (stage.seconds or 0.0)
        self._client.set_terminated(child, _STATUS.get(status, "FINISHED"), int(end * 1000))
        self._ended.add(child)

    def _end_parent(self, run: "RunRecord") -> None:
        parent = str(run.mlflow_run_id)
        report = run.last_attempts().get("report")
        if report is not None and report.path and report.status in ("ran", "skipped"):
            folder = Path(report.path)
            self._send(parent, read_lines(folder / JOURNAL_NAME, 0)[0])
            for name in ("index.html", "table.md", "scores.json"):
                if (folder / name).is_file():
                    self._client.log_artifact(parent, str(folder / name), "report")
        self._client.set_tag(parent, "longred.status", run.status)
        end = int((run.finished or time.time()) * 1000)
        self._client.set_terminated(parent, _STATUS.get(run.status, "FINISHED"), end)

    def _create(self, name: str, started: float, tags: Mapping[str, str]) -> str:
        created = self._client.create_run(
            self._experiment_id, start_time=int(started * 1000), tags=dict(tags), run_name=name
        )
        return str(created.info.run_id)

    def _log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:6000]) for key, value in values.items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(run_id, params=params[start : start + 100])

    def _send_live(self, child: str, stage: "StageRecord") -> None:
        """Send what a running stage has written.

        A resumed training first drops the lines after its checkpoint: until it has written one of
        its own, the journal still holds lines that will be replaced.
        """
        if not stage.work:
            return
        journal = Path(stage.work) / JOURNAL_NAME
        lines, offset = read_lines(journal, self._offsets.get(child, 0))
        if child in self._offsets or any(line["time"] >= stage.started for line in lines):
            self._send(child, lines)
            self._offsets[child] = offset

    def _send(self, child: str, lines: list[dict[str, Any]]) -> None:
        sent = self._sent.setdefault(child, set())
        points = {(line["key"], line["step"], line["time"]): line["value"] for line in lines}
        fresh = {point: value for point, value in points.items() if point not in sent}
        self._log_metrics(
            child,
            [(key, value, int(when * 1000), step) for (key, step, when), value in fresh.items()],
        )
        sent.update(fresh)

    def _log_metrics(self, run_id: str, points: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(key, float(value), when, step) for key, value, when, step in points]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(run_id, metrics=metrics[start : start + 1000])

    def _upload(self, child: str, folder: Path) -> None:
        """Upload the small files; MANIFEST.json among them names the large ones by hash."""
        for path in sorted(folder.rglob("*")):
            small = path.is_file() and path.stat().st_size <= UPLOAD_BYTES
            if small and path.suffix in UPLOAD_SUFFIXES:
                place = path.parent.relative_to(folder).as_posix()
                self._client.log_artifact(child, str(path), None if place == "." else place)


def _stage_tags(run: "RunRecord", stage: "StageRecord", status: str) -> dict[str, str]:
    tags = {
        "longred.stage": stage.stage,
        "longred.status": status,
        "longred.digest": stage.digest,
        "longred.artifact": stage.path,
        "longred.error": stage.error,
        "prefect.flow_run_id": run.prefect_flow_run_id,
        "prefect.task_run_id": stage.prefect_task_run_id,
    }
    return {name: str(value)[:4000] for name, value in tags.items() if value}


def _stage_params(run: "RunRecord", stage: "StageRecord") -> dict[str, Any]:
    """Return the settings of the stage's section, and which of its artifacts it is."""
    params = flatten(run.config.get(stage.stage, {}))
    _, _, part = stage.name.partition("/")
    return {**params, "part": part} if part else params


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested groups as one group with joined keys; only lists of groups are taken apart."""
    if isinstance(values, Mapping):
        items: Iterator[tuple[str, Any]] = ((str(key), value) for key, value in values.items())
    elif isinstance(values, list) and any(isinstance(item, Mapping | list) for item in values):
        items = ((str(number), value) for number, value in enumerate(values))
    else:
        return {prefix: values} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in items:
        joined = f"{prefix}.{key}" if prefix else key
        flat.update(flatten(value, joined))
    return flat
