"""Test both servers as in production: on a real PostgreSQL, with user names and passwords."""

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

ROOT = Path(__file__).parents[1]
START_SECONDS = 240.0
DATABASES = ("prefect", "mlflow", "mlflow_users")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Production:
    """Running servers that require authentication.

    Attributes:
        urls: URLs of `prefect` and `mlflow`.
        passwords: password of the user `admin` of each server.
        client: environment variables of a process with access to both servers.
        database: address of PostgreSQL, without the database's name.
    """

    urls: Mapping[str, str]
    passwords: Mapping[str, str]
    client: Mapping[str, str]
    database: str

    def ask(self, service: str, path: str, question: Any, password: str | None = None) -> Any:
        url, auth = self.urls[service] + path, ("admin", password) if password else None
        answer = httpx.post(url, json=question, auth=auth, timeout=120)
        answer.raise_for_status()
        return answer.json()

    def longred(self, store: Path, *words: str) -> str:
        """Run the command line with the client's environment and return its output."""
        result = subprocess.run(
            [sys.executable, "-m", "longred.cli", *words],
            env={**self.client, "LONGRED_STORE": str(store)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    beside = shutil.which("initdb")
    if not found and not beside:
        pytest.skip("needs PostgreSQL's programs: apt install postgresql (the CI script does so)")
    return found[-1].parent if found else Path(beside or "").parent


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **options
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


@contextlib.contextmanager
def postgres(logs: Path) -> Iterator[str]:
    """Run PostgreSQL in a temporary folder. It refuses to run as root: use user `postgres` then."""
    programs, port = binaries(), free_port()
    options: dict[str, Any] = {"cwd": "/"}
    folder = Path(tempfile.mkdtemp(prefix="longred-postgres-"))
    if os.getuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    try:
        initdb = [programs / "initdb", "--auth=trust", "--username=longred", "-D", folder / "data"]
        subprocess.run(initdb, check=True, capture_output=True, **options)
        command = [programs / "postgres", "-D", folder / "data", "-p", port, "-k", folder]
        with running([str(word) for word in command], logs / "postgres.log", **options):
            address = f"longred@127.0.0.1:{port}"
            deadline = time.monotonic() + 60
            ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
            while subprocess.run(ready, check=False, capture_output=True).returncode:
                assert time.monotonic() < deadline, (logs / "postgres.log").read_text()
                time.sleep(0.1)
            for name in DATABASES:
                create = [programs / "createdb", "-h", "127.0.0.1", "-p", str(port)]
                subprocess.run([*create, "-U", "longred", name], check=True)
            yield address
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    folder = tmp_path_factory.mktemp("production")
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    passwords = {name: secrets.token_hex(12) for name in ("prefect", "mlflow")}
    ports = {name: free_port() for name in ("prefect", "mlflow")}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    client = {
        **os.environ,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"{urls['prefect']}/api",
        "PREFECT_API_AUTH_STRING": f"admin:{passwords['prefect']}",
        "LONGRED_TRACKING_URI": urls["mlflow"],
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": passwords["mlflow"],
        "PYTHONPATH": str(ROOT),
    }
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(postgres(folder))
        prefect = {
            **client,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{address}/prefect",
            "PREFECT_SERVER_API_AUTH_STRING": client["PREFECT_API_AUTH_STRING"],
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        mlflow = {
            **client,
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://{address}/mlflow",
            "MLFLOW_USERS_DATABASE_URI": f"postgresql+psycopg2://{address}/mlflow_users",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        # The same options as in the compose file, with this machine's addresses.
        _, script, *words = compose["services"]["mlflow"]["entrypoint"]
        login = next(word for word in words if word.startswith("--app-name"))
        commands = {
            "prefect": ["-m", "prefect", "server", "start", "--host", "127.0.0.1"],
            "mlflow": [str(ROOT / script), "--host", "127.0.0.1", "--workers", "1", login],
        }
        commands["mlflow"] += ["--artifacts-destination", str(folder / "artifacts")]
        started = {}
        for name, environment in {"prefect": prefect, "mlflow": mlflow}.items():
            command = [sys.executable, *commands[name], "--port", str(ports[name])]
            log = folder / f"{name}.log"
            started[name] = stack.enter_context(running(command, log, env=environment, cwd=folder))
        for name, url in urls.items():
            _wait(name, url, client, started[name], folder / f"{name}.log")
        yield Production(urls, passwords, client, address)


def _wait(
    name: str,
    url: str,
    client: Mapping[str, str],
    process: subprocess.Popen[bytes],
    log: Path,
) -> None:
    """Wait until the containers' health check of a server succeeds."""
    command = [sys.executable, str(ROOT / "docker" / "health.py"), name, url]
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run(command, env=dict(client), capture_output=True, check=False).returncode:
        is_hopeful = process.poll() is None and time.monotonic() < deadline
        assert is_hopeful, log.read_text()[-4000:]
        time.sleep(0.5)


QUESTIONS = [
    ("prefect", "/api/flows/filter", {}),
    ("mlflow", "/api/2.0/mlflow/experiments/search", {"max_results": 1}),
]


@pytest.mark.parametrize(("service", "path", "question"), QUESTIONS)
def test_nobody_gets_in_without_a_password(
    production: Production, service: str, path: str, question: Any
) -> None:
    for password in (None, "wrong"):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            production.ask(service, path, question, password)
        assert refused.value.response.status_code == 401
    production.ask(service, path, question, production.passwords[service])


def test_a_run_is_kept_on_both_and_passwords_nowhere(
    production: Production, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    said = production.longred(store, "run", "demo", "data.num_tokens=131072", "--only", "data")
    # Send MLflow what it had been too slow to receive when the run ended.
    said += production.longred(store, "reap")
    flows = production.ask("prefect", "/api/flow_runs/filter", {}, production.passwords["prefect"])
    assert [run["state_type"] for run in flows] == ["COMPLETED"]
    password = production.passwords["mlflow"]
    path = "/api/2.0/mlflow/experiments/search"
    (experiment,) = [
        each["experiment_id"]
        for each in production.ask("mlflow", path, {"max_results": 10}, password)["experiments"]
        if each["name"] == "longred"
    ]
    question = {"experiment_ids": [experiment], "max_results": 50}
    runs = production.ask("mlflow", "/api/2.0/mlflow/runs/search", question, password)["runs"]
    assert runs
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}
    told = [said, json.dumps(flows), json.dumps(runs)]
    for secret in production.passwords.values():
        assert not any(secret in text for text in told)
        written = [p for p in store.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
        assert written == []


def test_it_is_postgres_that_holds_them(production: Production) -> None:
    import psycopg2

    for database, table in (("prefect", "flow_run"), ("mlflow", "runs"), ("mlflow_users", "users")):
        with contextlib.closing(
            psycopg2.connect(f"postgresql://{production.database}/{database}")
        ) as connection:
            cursor = connection.cursor()
            cursor.execute(f"SELECT count(*) FROM {table}")  # noqa: S608 - a table of the lines above
            assert cursor.fetchone()[0] >= 1
