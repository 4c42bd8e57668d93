"""Start MLflow's server with logins: python docker/serve_mlflow.py OPTION…

Writes the file that MLflow reads logins from; the environment has its values:
MLFLOW_USERS_DATABASE_URI, and MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of the
administrator. Compose itself can add no file to a container with a read-only root.
"""

import configparser
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path


def write_logins(file: Path, environment: Mapping[str, str]) -> None:
    """Write the configuration of MLflow's logins, readable by this user alone.

    Raises:
        KeyError: a variable is not set.
    """
    values = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": environment["MLFLOW_USERS_DATABASE_URI"],
        "admin_username": environment["MLFLOW_TRACKING_USERNAME"],
        "admin_password": environment["MLFLOW_TRACKING_PASSWORD"],
    }
    logins = configparser.ConfigParser(interpolation=None)
    # MLflow reads the file with interpolation, where a percent sign must be doubled.
    logins["mlflow"] = {key: value.replace("%", "%%") for key, value in values.items()}
    file.touch(mode=0o600)
    with file.open("w", encoding="utf-8") as out:
        logins.write(out)


def main(options: list[str]) -> None:
    """Write the logins and become the server."""
    file = Path(tempfile.mkdtemp()) / "logins.ini"
    write_logins(file, os.environ)
    os.environ["MLFLOW_AUTH_CONFIG_PATH"] = str(file)
    command = [sys.executable, "-m", "mlflow", "server", *options]
    os.execv(sys.executable, command)  # noqa: S606 - our own interpreter and arguments


if __name__ == "__main__":
    main(sys.argv[1:])
