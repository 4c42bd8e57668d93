"""MLflow's copy of a run: what it should hold, read from the record and journals, and sent.

MLflow's asynchronous logging (`log_batch(synchronous=False)`) drops a batch that fails, and at exit
it waits without a limit for a server that is away. So `Follower` calls this module on its own
thread, synchronously: a point counts as sent only after the server accepted it.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longred.config import TrackingConfig, without_copies
from longred.errors import MismatchError
from longred.runs.description import headlines, note, run_name, run_page, source_tags
from longred.runs.mlflow_home import connect
from longred.runs.record import RunRecord, StageRecord
from longred.store.artifacts import read_json
from longred.store.journal import JOURNAL_NAME, read_lines

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

UPLOAD_SUFFIXES = {".json", ".jsonl", ".md", ".html", ".svg", ".png", ".txt"}
UPLOAD_BYTES = 1 << 20
SYSTEM_SECONDS = 10.0
SAMPLES = "evaluation/samples"
DATASETS = {
    "profiling": ("data",),
    "training": ("data",),
    "evaluation": ("data", SAMPLES),
    "report": ("data", SAMPLES),
}
"""Artifacts that a stage reads as data sets."""
_STATUS = {"failed": "FAILED", "stopped": "KILLED", "lost": "KILLED"}


class Mirror:
    """Sends runs to one MLflow experiment and remembers what has been sent.

    Args:
        root: root folder of the store.
        tracking: location of MLflow; the experiment is created if needed.
        page: URL of the MLflow server that shows the store's own database; empty if none runs.

    Raises:
        OSError, MlflowException, SQLAlchemyError, RequestException: MLflow cannot be reached.
    """

    def __init__(self, root: Path, tracking: TrackingConfig, page: str = "") -> None:
        self.client, self.experiment_id = connect(root, tracking)
        uri = tracking.uri or page
        self._page = uri if uri.startswith("http") else ""
        self._system: SystemMetricsMonitor | None = None
        self._last_sample = 0.0
        self._described: set[str] = set()
        self._ended: set[str] = set()
        self._sent: dict[str, set[tuple[str, int, float]]] = {}
        self._offsets: dict[str, int] = {}

    def show(self, run: RunRecord) -> bool:
        """Send everything that MLflow lacks of a run; return whether the record changed."""
        before = _mlflow_fields(run)
        ended = run.status == "lost" or (run.status != "running" and run.finished is not None)
        self._show_parent(run)
        for stage in list(run.stages):
            self._show_stage(run, stage)
        if ended and not run.in_mlflow:
            self._end_parent(run)
            run.in_mlflow = True
        return before != _mlflow_fields(run)

    def _show_parent(self, run: RunRecord) -> None:
        if run.mlflow_run_id is None:
            tags = {
                "mlflow.parentRunId": run.config["tracking"].get("parent_run_id"),
                "longred.run": run.id,
                "longred.recipe": run.recipe,
                "longred.digest": run.digest,
                "longred.origin": run.origin,
                "longred.part": run.part,
                "prefect.flow_run_id": run.prefect_flow_run_id,
                "prefect.url": run.prefect_url,
                "mlflow.note.content": note(run),
                **source_tags(run),
            }
            run.mlflow_run_id = self._create(run_name(run), run.started, tags)
        if self._page:
            run.mlflow_url = run_page(self._page, self.experiment_id, run.mlflow_run_id)
        if run.mlflow_run_id not in self._described and not run.in_mlflow:
            self._log_params(run.mlflow_run_id, comparable(run.config))
            self.client.log_dict(run.mlflow_run_id, run.config, "config.json")
            self._described.add(run.mlflow_run_id)

    def _show_stage(self, run: RunRecord, stage: StageRecord) -> None:
        # The stage ends in another thread; everything below goes by the status it has now.
        status = stage.status
        tags = {
            "mlflow.parentRunId": run.mlflow_run_id,
            "longred.run": run.id,
            "longred.stage": stage.stage,
            "longred.status": status,
            "longred.digest": stage.digest,
            "longred.artifact": stage.path,
            "longred.error": stage.error and stage.error[:4000],
            "longred.reason": stage.reason,
            "longred.origin": run.origin,
            "prefect.flow_run_id": run.prefect_flow_run_id,
            "prefect.task_run_id": stage.prefect_task_run_id,
            **source_tags(run),
        }
        child = stage.mlflow_run_id
        if child in self._ended:
            return
        if child is None:
            child = stage.mlflow_run_id = self._create(stage.name, stage.started, tags)
        elif status != "running":
            self._send_tags(child, tags)
        if child not in self._described:
            params = flatten(without_copies(run.config).get(stage.stage, {}))
            _, _, part = stage.name.partition("/")
            self._log_params(child, {**params, "part": part} if part else params)
            self._log_datasets(child, run, DATASETS.get(stage.stage, ()), stage.stage)
            self._described.add(child)
        if status == "running":
            self._send_live(child, stage)
            if stage.stage == "training" and stage.reason:
                self._send_system(child, stage)
            return
        self._system = None
        if status == "ran" and stage.path:
            folder = Path(stage.path)
            self._send_journal(child, folder)
            self._upload(child, folder)
            if stage.stage == "training":
                self._register(child, run, stage)
        elif stage.work:
            self._send_journal(child, Path(stage.work))
        end = stage.started + (stage.seconds or 0.0)
        self.client.set_terminated(child, _STATUS.get(status, "FINISHED"), int(end * 1000))
        self._ended.add(child)

    def _end_parent(self, run: RunRecord) -> None:
        parent = str(run.mlflow_run_id)
        stages = run.last_attempts()
        report, folder = stages.get("report"), None
        if report is not None and report.path and report.status in ("ran", "skipped"):
            folder = Path(report.path)
            lines = _journal(folder)
            self._send(parent, [*headlines(lines), *lines])
            for name in ("index.html", "table.md", "scores.json"):
                if (folder / name).is_file():
                    self.client.log_artifact(parent, str(folder / name), "report")
        else:
            self._send_scores(parent, run)
        self._log_datasets(parent, run, ("data", SAMPLES), "run")
        stale = [name for name, stage in stages.items() if stage.status == "stale"]
        tags = {
            "longred.status": run.status,
            "longred.stale": ", ".join(stale),
            "mlflow.note.content": note(run, folder),
        }
        self._send_tags(parent, tags)
        end = int((run.finished or time.time()) * 1000)
        self.client.set_terminated(parent, _STATUS.get(run.status, "FINISHED"), end)

    def _send_scores(self, parent: str, run: RunRecord) -> None:
        """Send the scores of a run without a report under the keys that a report would use."""
        for name, stage in run.last_attempts().items():
            model = name.removeprefix("evaluation/")
            if stage.stage != "evaluation" or name == SAMPLES or not stage.path:
                continue
            lines = _journal(Path(stage.path))
            self._send(parent, [{**line, "key": f"{model}/{line['key']}"} for line in lines])
            if model == run.config["training"]["method"]:
                self._send(parent, [*headlines(lines), *lines])

    def _create(self, name: str, started: float, tags: Mapping[str, str | None]) -> str:
        created = self.client.create_run(
            self.experiment_id, start_time=int(started * 1000), tags=_given(tags), run_name=name
        )
        return str(created.info.run_id)

    def _send_tags(self, run_id: str, tags: Mapping[str, str | None]) -> None:
        """Set tags in one call; each call can take a second."""
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(*tag) for tag in _given(tags).items()])

    def _log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:6000]) for key, value in values.items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[start : start + 100])

    def _send_live(self, child: str, stage: StageRecord) -> None:
        """Send the new journal lines of a running stage.

        A resumed training first drops the lines after its checkpoint. Until it has written a line
        of its own, the journal may still hold lines that will be replaced.
        """
        if not stage.work:
            return
        lines, offset = _lines(Path(stage.work), self._offsets.get(child, 0))
        if child in self._offsets or any(line["time"] >= stage.started for line in lines):
            self._send(child, lines)
            self._offsets[child] = offset

    def _send_journal(self, run_id: str, folder: Path) -> None:
        self._send(run_id, _journal(folder))

    def _send(self, run_id: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Send the lines of a journal that were not sent before; of equal points the last one."""
        from mlflow.entities import Metric

        sent = self._sent.setdefault(run_id, set())
        points = {(line["key"], line["step"], line["time"]): line["value"] for line in lines}
        points = {point: value for point, value in points.items() if point not in sent}
        metrics = [
            Metric(key, float(value), int(when * 1000), step)
            for (key, step, when), value in points.items()
        ]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[start : start + 1000])
        sent.update(points)

    def _send_system(self, child: str, stage: StageRecord) -> None:
        """Send the utilisation of processor, memory, disk, network and GPUs.

        MLflow's monitor measures and names them. Its own thread is not used: a server that is away
        blocks it.
        """
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        now = time.time()
        if now - self._last_sample < SYSTEM_SECONDS:
            return
        self._last_sample = now
        if self._system is None:
            self._system = SystemMetricsMonitor(child, tracking_uri=self.client.tracking_uri)
        self._system.collect_metrics()
        values = self._system.aggregate_metrics()
        for monitor in self._system.monitors:
            monitor.clear_metrics()
        at = {"time": now, "step": int(now - stage.started)}
        self._send(child, [{"key": f"system/{k}", "value": v, **at} for k, v in values.items()])

    def _log_datasets(
        self, run_id: str, run: RunRecord, names: Iterable[str], context: str
    ) -> None:
        """Log finished artifacts as the data sets of a run, by digest and path."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        stages = run.last_attempts()
        inputs = [
            DatasetInput(
                Dataset(
                    name=name.replace("/", "-"),
                    digest=str(stages[name].digest),
                    source_type="local",
                    source=json.dumps({"uri": stages[name].path}),
                    profile=_profile(Path(str(stages[name].path))),
                ),
                [InputTag("mlflow.data.context", context)],
            )
            for name in names
            if name in stages and stages[name].path
        ]
        if inputs:
            self.client.log_inputs(run_id, datasets=inputs)

    def _register(self, child: str, run: RunRecord, stage: StageRecord) -> None:
        """Create a version of the recipe's registered model; the weights stay in the store."""
        name, method = f"longred-{run.config['name']}", stage.name.partition("/")[2]
        if self.client.search_model_versions(f"run_id = '{child}'"):
            return
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)
        version = self.client.create_model_version(
            name,
            self.client.get_run(child).info.artifact_uri,
            run_id=child,
            tags={
                "longred.run": run.id,
                "longred.method": method,
                "longred.digest": str(stage.digest),
                "longred.artifact": str(stage.path),
            },
            description=f"Weights: {stage.path}; MANIFEST.json has their hashes.",
        )
        self.client.set_registered_model_alias(name, method, version.version)

    def _upload(self, child: str, folder: Path) -> None:
        """Upload the small files; among them MANIFEST.json, which names the large ones by hash."""
        for path in sorted(folder.rglob("*")):
            is_small = path.is_file() and path.stat().st_size <= UPLOAD_BYTES
            if is_small and path.suffix in UPLOAD_SUFFIXES:
                parent = path.parent.relative_to(folder).as_posix()
                self.client.log_artifact(child, str(path), None if parent == "." else parent)


def _mlflow_fields(run: RunRecord) -> tuple[Any, ...]:
    return run.mlflow_run_id, run.in_mlflow, [stage.mlflow_run_id for stage in run.stages]


def _given(tags: Mapping[str, str | None]) -> dict[str, str]:
    """Return the tags that have a value."""
    return {name: value for name, value in tags.items() if value}


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings by dotted key, each once, without `store` and `tracking`."""
    own = without_copies(config)
    return flatten({k: v for k, v in own.items() if k not in ("store", "tracking")})


def _lines(folder: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of a folder's journal after an offset, and the next offset.

    Raises:
        MismatchError: the journal is damaged.
    """
    try:
        return read_lines(folder / JOURNAL_NAME, offset)
    except ValueError as error:
        raise MismatchError(f"{folder / JOURNAL_NAME}: is damaged ({error})") from error


def _journal(folder: Path) -> list[dict[str, Any]]:
    return _lines(folder, 0)[0]


def _profile(folder: Path) -> str | None:
    """Return the number of tokens of each bucket of a data artifact, as JSON."""
    try:
        index = read_json(folder / "index.json")
    except MismatchError:
        return None
    return json.dumps(
        {
            f"{split}_{bucket}_tokens": each["num_blocks"] * each["block_length"]
            for split in ("train", "held_out")
            for bucket, each in index.get(split, {}).items()
        }
    )


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Join the keys of nested groups with dots; only lists of groups are split into items."""
    if isinstance(values, Mapping):
        items: Iterator[tuple[str, Any]] = ((str(key), value) for key, value in values.items())
    elif isinstance(values, list) and any(isinstance(item, Mapping | list) for item in values):
        items = ((str(number), value) for number, value in enumerate(values))
    else:
        return {prefix: values} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else key))
    return flat
