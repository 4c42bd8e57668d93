"""Connect to the MLflow server or database that shows a store's runs."""

import fcntl
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from longred.config import TrackingConfig
from longred.runs.description import EXPERIMENT_TAGS
from longred.store.databases import refuse_damaged

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ENVIRONMENT = {
    # MLflow's defaults block each call to an unreachable server for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def database(root: Path) -> Path:
    """Return a store's own SQLite file."""
    return root / "mlflow.db"


def local_uri(root: Path) -> str:
    """Return the tracking URI of a store's own SQLite file."""
    return f"sqlite:///{database(root)}"


def artifact_folder(root: Path) -> Path:
    """Return the folder of the artifacts uploaded to a store's own MLflow."""
    return root / "mlflow-artifacts"


def unreachable() -> tuple[type[Exception], ...]:
    """Return the errors that MLflow raises if it cannot be reached or refuses a request."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, RequestException, SQLAlchemyError, OSError)


def connect(root: Path, tracking: TrackingConfig) -> tuple["MlflowClient", str]:
    """Return a client and the id of the experiment; create the experiment if needed.

    The store's own database is migrated under a lock, because two concurrent migrations break it.

    Raises:
        OSError, MlflowException, SQLAlchemyError, RequestException: MLflow cannot be reached.
        PreflightError: the store's own database is damaged.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    root.mkdir(parents=True, exist_ok=True)
    with (root / "mlflow.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if tracking.uri in (None, local_uri(root)):
            refuse_damaged(database(root), "MLflow")
        client = MlflowClient(tracking.uri or local_uri(root))
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is not None:
            for key, value in EXPERIMENT_TAGS.items():
                if key not in experiment.tags:
                    client.set_experiment_tag(experiment.experiment_id, key, value)
            return client, str(experiment.experiment_id)
        # With a plain database MLflow would upload into the current folder.
        served = (tracking.uri or "").startswith("http")
        folder = None if served else artifact_folder(root).as_uri()
        created = client.create_experiment(tracking.experiment, folder, EXPERIMENT_TAGS)
        return client, str(created)
