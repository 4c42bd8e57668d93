"""What MLflow should hold of a run, read from its record and journals, and how it is told."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longred.config import without_copies
from longred.errors import MismatchError
from longred.runs.system_metrics import SystemMetrics
from longred.store.artifacts import read_json
from longred.store.journal import JOURNAL_NAME, read_lines

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from longred.runs.record import RunRecord, StageRecord

UPLOAD_SUFFIXES = {".json", ".jsonl", ".md", ".html", ".svg", ".png", ".txt"}
UPLOAD_BYTES = 1 << 20
SYSTEM_SECONDS = 10.0
SAMPLES = "evaluation/samples"
DATASETS = {
    "data": (),
    "profiling": ("data",),
    "training": ("data",),
    "evaluation": ("data", SAMPLES),
    "report": ("data", SAMPLES),
}
"""Which stages' artifacts a stage reads as data sets."""
_STATUS = {"failed": "FAILED", "stopped": "KILLED", "lost": "KILLED"}


class Mirror:
    """What MLflow has been told so far, and the calls that bring it up to date.

    Args:
        client: where MLflow is.
        experiment_id: the experiment that holds the runs.
        page: address of MLflow's pages; empty where there are none.
    """

    def __init__(self, client: "MlflowClient", experiment_id: str, page: str = "") -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._page = page
        self._system: SystemMetrics | None = None
        self._described: set[str] = set()
        self._tags: dict[str, dict[str, str]] = {}
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
            tags |= _run_tags(run)
            run.mlflow_run_id = self._create(run.id, run.started, tags)
        if self._page:
            place = f"experiments/{self._experiment_id}/runs/{run.mlflow_run_id}"
            run.mlflow_url = f"{self._page}/#/{place}"
        if run.mlflow_run_id not in self._described and not run.in_mlflow:
            self._log_params(run.mlflow_run_id, comparable(run.config))
            self._client.log_dict(run.mlflow_run_id, run.config, "config.json")
            self._described.add(run.mlflow_run_id)

    def _show_stage(self, run: "RunRecord", stage: "StageRecord") -> None:
        status = stage.status
        if stage.mlflow_run_id is None:
            tags = {"mlflow.parentRunId": run.mlflow_run_id or "", "longred.run": run.id}
            tags |= _stage_tags(run, stage, status)
            stage.mlflow_run_id = self._create(stage.name, stage.started, tags)
            self._tags[stage.mlflow_run_id] = tags
        child = stage.mlflow_run_id
        if child in self._ended:
            return
        if child not in self._described:
            self._log_params(child, _stage_params(run, stage))
            self._log_datasets(child, run, DATASETS.get(stage.stage, ()), stage.stage)
            self._described.add(child)
        if status == "running":
            self._send_live(child, stage)
            if stage.stage == "training" and stage.reason:
                self._send_system(child, stage)
            return
        self._system = None
        self._send_tags(child, _stage_tags(run, stage, status))
        if status == "ran" and stage.path:
            folder = Path(stage.path)
            self._send(child, read_lines(folder / JOURNAL_NAME, 0)[0])
            self._upload(child, folder)
            if stage.stage == "training":
                self._register(child, run, stage)
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
        else:
            self._send_scores(parent, run)
        self._log_datasets(parent, run, ("data", SAMPLES), "run")
        stale = [name for name, each in run.last_attempts().items() if each.status == "stale"]
        left_over = {"longred.stale": ", ".join(stale)} if stale else {}
        self._send_tags(parent, {"longred.status": run.status, **left_over})
        end = int((run.finished or time.time()) * 1000)
        self._client.set_terminated(parent, _STATUS.get(run.status, "FINISHED"), end)

    def _send_scores(self, parent: str, run: "RunRecord") -> None:
        """Send what the evaluations of a run without a report have scored, as a report would."""
        for name, stage in run.last_attempts().items():
            model = name.removeprefix("evaluation/")
            if stage.stage != "evaluation" or name == SAMPLES or not stage.path:
                continue
            lines = read_lines(Path(stage.path) / JOURNAL_NAME, 0)[0]
            self._send(parent, [{**line, "key": f"{model}/{line['key']}"} for line in lines])
            if model == run.config["training"]["method"]:
                self._send(parent, lines)

    def _create(self, name: str, started: float, tags: Mapping[str, str]) -> str:
        created = self._client.create_run(
            self._experiment_id, start_time=int(started * 1000), tags=dict(tags), run_name=name
        )
        return str(created.info.run_id)

    def _send_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Send the tags that are new or others than before, in one call: each may take a second."""
        from mlflow.entities import RunTag

        known = self._tags.setdefault(run_id, {})
        fresh = {name: value for name, value in tags.items() if known.get(name) != value}
        if fresh:
            self._client.log_batch(run_id, tags=[RunTag(*tag) for tag in fresh.items()])
            known.update(fresh)

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

    def _send_system(self, child: str, stage: "StageRecord") -> None:
        """Send how busy the machine is, where MLflow's own page of it looks."""
        if self._system is None:
            self._system = SystemMetrics(SYSTEM_SECONDS)
        now = time.time()
        values = self._system.sample()
        step = int(now - stage.started)
        self._log_metrics(child, [(k, v, int(now * 1000), step) for k, v in values.items()])

    def _log_datasets(
        self, run_id: str, run: "RunRecord", names: Iterable[str], context: str
    ) -> None:
        """Log which finished artifacts are the data of a run, by digest and place."""
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
            self._client.log_inputs(run_id, datasets=inputs)

    def _register(self, child: str, run: "RunRecord", stage: "StageRecord") -> None:
        """Make a version of the recipe's registered model; the weights stay where they are."""
        name, method = f"longred-{run.config['name']}", stage.name.partition("/")[2]
        if self._client.search_model_versions(f"run_id = '{child}'"):
            return
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)
        version = self._client.create_model_version(
            name,
            self._client.get_run(child).info.artifact_uri,
            run_id=child,
            tags={
                "longred.run": run.id,
                "longred.method": method,
                "longred.digest": str(stage.digest),
                "longred.artifact": str(stage.path),
            },
            description=f"Weights: {stage.path}; MANIFEST.json has their hashes.",
        )
        self._client.set_registered_model_alias(name, method, version.version)

    def _upload(self, child: str, folder: Path) -> None:
        """Upload the small files; MANIFEST.json among them names the large ones by hash."""
        for path in sorted(folder.rglob("*")):
            small = path.is_file() and path.stat().st_size <= UPLOAD_BYTES
            if small and path.suffix in UPLOAD_SUFFIXES:
                place = path.parent.relative_to(folder).as_posix()
                self._client.log_artifact(child, str(path), None if place == "." else place)


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings by dotted key, each once, without where the run is kept and shown."""
    own = without_copies(config)
    return flatten({k: v for k, v in own.items() if k not in ("store", "tracking")})


def _run_tags(run: "RunRecord") -> dict[str, str]:
    """Return who a run comes from and where else it is shown."""
    tags = {
        "longred.origin": run.origin,
        "longred.part": run.part,
        "prefect.flow_run_id": run.prefect_flow_run_id,
        "prefect.url": run.prefect_url,
        "mlflow.note.content": _note(run),
    }
    return {name: value for name, value in tags.items() if value}


def _note(run: "RunRecord") -> str:
    """Return what MLflow shows as a run's description."""
    lines = [f"`longred run {' '.join([run.recipe, *run.overrides])}`"]
    if run.origin:
        lines.append(f"{run.part or 'started'} from run `{run.origin}`")
    if run.prefect_url:
        lines.append(f"[flow run in Prefect]({run.prefect_url})")
    return "\n\n".join(lines)


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


def _stage_tags(run: "RunRecord", stage: "StageRecord", status: str) -> dict[str, str]:
    tags = {
        "longred.stage": stage.stage,
        "longred.status": status,
        "longred.digest": stage.digest,
        "longred.artifact": stage.path,
        "longred.error": stage.error,
        "longred.reason": stage.reason,
        "longred.origin": run.origin,
        "prefect.flow_run_id": run.prefect_flow_run_id,
        "prefect.task_run_id": stage.prefect_task_run_id,
    }
    return {name: str(value)[:4000] for name, value in tags.items() if value}


def _stage_params(run: "RunRecord", stage: "StageRecord") -> dict[str, Any]:
    """Return the settings of the stage's section, and which of its artifacts it is."""
    params = flatten(without_copies(run.config).get(stage.stage, {}))
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
