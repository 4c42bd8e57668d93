"""An MLflow run that groups several runs, such as those of a study.

MLflow that cannot be reached costs a warning, never the runs.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from longred.config import TrackingConfig
from longred.errors import LongredError
from longred.runs.mlflow_home import connect, unreachable

log = logging.getLogger(__name__)

GROUP_TAG = "longred.group"
MAX_NOTE = 8000
"""Most characters of a tag's value on every kind of server."""


def open_group(
    root: Path,
    tracking: TrackingConfig,
    *,
    name: str,
    key: str,
    note: str,
    tags: Mapping[str, str],
) -> str:
    """Return the id of the MLflow run of a group; empty if MLflow cannot be reached.

    Args:
        root: root folder of the store.
        tracking: location of MLflow.
        name: name of the run, if it is created.
        key: identity of the group: a group of this key is continued.
        note: description of the run.
        tags: further tags.
    """
    found = ""
    with _warned():
        client, experiment_id = connect(root, tracking)
        known = client.search_runs([experiment_id], f"tags.`{GROUP_TAG}` = '{key}'", max_results=1)
        if known:
            found = str(known[0].info.run_id)
            client.update_run(found, status="RUNNING")
        else:
            every = {**tags, GROUP_TAG: key, "mlflow.note.content": note}
            created = client.create_run(experiment_id, tags=every, run_name=name)
            found = str(created.info.run_id)
    return found


def fill_group(
    root: Path,
    tracking: TrackingConfig,
    run_id: str,
    *,
    metrics: Mapping[str, float],
    files: Sequence[Path],
    note: str,
) -> None:
    """Log the results of a group.

    Args:
        root: root folder of the store.
        tracking: location of MLflow.
        run_id: from `open_group`.
        metrics: key → value.
        files: uploaded into the folder `study`.
        note: new description of the run.
    """
    with _warned():
        from mlflow.entities import Metric, RunTag
        from mlflow.utils.time import get_current_time_millis

        client, _ = connect(root, tracking)
        now = get_current_time_millis()
        entries = [Metric(key, value, now, 0) for key, value in metrics.items()]
        for start in range(0, len(entries), 1000):
            client.log_batch(run_id, metrics=entries[start : start + 1000])
        client.log_batch(run_id, tags=[RunTag("mlflow.note.content", note[:MAX_NOTE])])
        for path in files:
            client.log_artifact(run_id, str(path), "study")


def end_group(root: Path, tracking: TrackingConfig, run_id: str, status: str) -> None:
    """End the MLflow run of a group as FINISHED, FAILED or KILLED."""
    with _warned():
        connect(root, tracking)[0].set_terminated(run_id, status)


@contextmanager
def _warned() -> Iterator[None]:
    try:
        yield
    except unreachable() + (LongredError,) as error:  # noqa: RUF005 - mypy follows only the sum
        log.warning("MLflow does not show the group of these runs: %s", error)
