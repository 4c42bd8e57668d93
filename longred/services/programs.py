"""Command lines and environments of the services.

The environment of `longred up` configures what differs between sites: databases other than the
store's SQLite files, and logins. Secrets never appear on a command line, where `ps` shows them.
"""

import os
import sys
from pathlib import Path

import longred
from longred.errors import PreflightError
from longred.runs.mlflow_home import artifact_folder, local_uri
from longred.runs.record import STORE_VARIABLE, TRACKING_VARIABLE
from longred.services.temporary_server import prefect_environment

WORK_POOL = "longred"
MLFLOW_DATABASE_VARIABLE = "MLFLOW_BACKEND_STORE_URI"
MLFLOW_AUTH_VARIABLE = "MLFLOW_AUTH_CONFIG_PATH"
MLFLOW_SESSIONS_VARIABLE = "MLFLOW_FLASK_SERVER_SECRET_KEY"
VERSION_VARIABLE = "LONGRED_VERSION"
"""Environment variable that `deployments/prefect.yaml` takes the deployments' version from."""
REAP_SECONDS = 20


def command(root: Path, name: str, port: int) -> list[str]:
    """Return the command line of a service.

    Raises:
        PreflightError: MLflow should ask for passwords but lacks its session key.
    """
    python = [sys.executable, "-m"]
    listen = ["--host", "127.0.0.1", "--port", str(port)]
    if name == "prefect":
        return [*python, "prefect", "server", "start", *listen]
    if name == "reaper":
        return [*python, "longred.cli", "reap", "--every", str(REAP_SECONDS)]
    if name != "mlflow":
        pool = ("--pool", WORK_POOL, "--type", "process", "--limit", "1", "--name", name)
        return [*python, "prefect", "worker", "start", *pool]
    options = ["--workers", "1", "--artifacts-destination", str(artifact_folder(root))]
    options += ["--allowed-hosts", "localhost,localhost:*,127.0.0.1,127.0.0.1:*"]
    if not os.environ.get(MLFLOW_DATABASE_VARIABLE):
        options += ["--backend-store-uri", local_uri(root)]
    if os.environ.get(MLFLOW_AUTH_VARIABLE):
        if not os.environ.get(MLFLOW_SESSIONS_VARIABLE):
            raise PreflightError(
                f"{MLFLOW_AUTH_VARIABLE} is set and {MLFLOW_SESSIONS_VARIABLE} is not; "
                "set it to a long random text, the same one at every start"
            )
        options += ["--app-name", "basic-auth"]
    return [*python, "mlflow", "server", *listen, *options]


def environment(
    root: Path, repository: Path, prefect: str, *, mlflow: str = "", gpus: str = ""
) -> dict[str, str]:
    """Return the environment of a service; a flow run inherits that of its worker.

    Args:
        root: root folder of the store.
        repository: folder that holds `flows`.
        prefect: URL of Prefect's server.
        mlflow: URL of the MLflow server to log to, if any.
        gpus: visible GPUs; empty for all.
    """
    paths = [str(repository), os.environ.get("PYTHONPATH", "")]
    optional = {TRACKING_VARIABLE: mlflow, "CUDA_VISIBLE_DEVICES": gpus}
    return {
        **os.environ,
        **prefect_environment(root),
        "PREFECT_API_URL": f"{prefect}/api",
        "PREFECT_UI_API_URL": f"{prefect}/api",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "longred",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        VERSION_VARIABLE: longred.__version__,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        STORE_VARIABLE: str(root),
        **{name: value for name, value in optional.items() if value},
    }
