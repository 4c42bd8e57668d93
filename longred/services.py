"""The services that stay up beside a store: Prefect's server, MLflow's, and a worker.

Started once, they outlive the terminal; one folder holds their state and logs. Each is known by its
process id and start time, so that nothing else is ever stopped in its place.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from longred.artifacts import locked, read_json, storage_errors, write_json
from longred.config import TrackingConfig
from longred.errors import PreflightError
from longred.runs import STORE_VARIABLE, TRACKING_VARIABLE, is_alive, process_identity
from longred.temporary_server import prefect_environment

WORK_POOL = "longred"
DEPLOYMENT = "longred/full-pipeline"
DEPLOYMENTS_FILE = "deployments/prefect.yaml"
DEFAULT_PREFECT_PORT = 4200
TITLES = {"prefect": "Prefect", "mlflow": "MLflow", "worker": "worker"}
START_SECONDS = 300.0
STOP_SECONDS = 20.0
LOG_TAIL_LINES = 12

Say = Callable[[str], None]


@dataclass(frozen=True)
class Service:
    """One running service.

    Attributes:
        process: id and start time of its first process, which leads a session of its own.
        url: where it is seen in a browser; empty for the worker.
        port: where it listens; 0 for the worker.
    """

    name: str
    process: list[float]
    url: str = ""
    port: int = 0


def folder(root: Path) -> Path:
    """Return the folder of the services' state and logs."""
    return root / "services"


def load(root: Path) -> dict[str, Service]:
    """Return the services that were started for a store and still run."""
    path = folder(root) / "services.json"
    if not path.is_file():
        return {}
    services = {name: Service(**values) for name, values in read_json(path).items()}
    return {name: service for name, service in services.items() if is_alive(service.process)}


def prefect_url(root: Path) -> str | None:
    """Return the API address of the store's own Prefect server, if it runs and answers."""
    service = load(root).get("prefect")
    if service is None:
        return None
    url = f"{service.url}/api"
    return url if _ask(f"{url}/health") is not None else None


def up(root: Path, repository: Path, *, ports: Mapping[str, int], say: Say) -> dict[str, Service]:
    """Start what does not run yet, wait until it works, and apply the deployments.

    Args:
        root: the store's root.
        repository: folder that holds `flows` and `deployments`.
        ports: port of `prefect` and of `mlflow`.
        say: told what is going on.

    Raises:
        PreflightError: a port is taken, or a service does not start; the message says what to do.
        LockedError: another `up` or `down` is at work on this store.
    """
    with storage_errors(root), locked(folder(root) / "lock", "the set of services"):
        services = load(root)
        if set(services) == set(TITLES):
            return services
        for name in ("prefect", "mlflow"):
            if name not in services:
                _check_port(name, ports[name])
        _prepare_mlflow(root)
        for name in ("prefect", "mlflow"):
            if name not in services:
                say(f"starting {TITLES[name]} on port {ports[name]}")
                services[name] = _start(root, repository, name, services, ports[name])
        _wait(root, services["prefect"], "/api/flows/count", {})
        _wait(root, services["mlflow"], "/api/2.0/mlflow/experiments/search", {"max_results": 1})
        if "worker" not in services:
            say("starting a worker")
            services["worker"] = _start(root, repository, "worker", services, 0)
        _wait_for_pool(root, services)
        say("applying the deployments")
        _deploy(root, repository, services)
    return services


def down(root: Path) -> list[str]:
    """Stop the services of a store, the worker and its flow runs first; return their names.

    Raises:
        LockedError: another `up` or `down` is at work on this store.
    """
    state = folder(root) / "services.json"
    if not state.is_file():
        return []
    with locked(folder(root) / "lock", "the set of services"):
        services = load(root)
        names = [name for name in ("worker", "mlflow", "prefect") if name in services]
        for name in names:
            _stop(services[name])
        state.unlink(missing_ok=True)
    return [TITLES[name] for name in names]


def status(root: Path) -> list[str]:
    """Return a line for each service."""
    services = load(root)
    lines = []
    for name, title in TITLES.items():
        service = services.get(name)
        if service is None:
            lines.append(f"{title:<12} stopped")
        else:
            lines.append(
                f"{title:<12} running    {service.url or f'process {int(service.process[0])}'}"
            )
    return lines


def describe(services: Mapping[str, Service], repository: Path) -> str:
    """Return where the services are seen and how to start a flow run."""
    prefect = services["prefect"]
    lines = [f"Prefect  {prefect.url}", f"MLflow   {services['mlflow'].url}", ""]
    if prefect.port != DEFAULT_PREFECT_PORT or Path.cwd() != repository:
        lines.append(f"export PREFECT_API_URL={prefect.url}/api")
    lines.append(f"prefect deployment run {DEPLOYMENT}")
    lines.append(f"prefect deployment run {DEPLOYMENT} -p 'overrides=[\"training.num_steps=80\"]'")
    return "\n".join(lines)


def _check_port(name: str, port: int) -> None:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return
    except OSError as error:
        raise PreflightError(
            f"port {port} for {TITLES[name]} is taken ({os.strerror(error.errno or 0)}); "
            f"free it, or choose another: longred up --{name}-port {port + 1}"
        ) from None


def _prepare_mlflow(root: Path) -> None:
    """Make or migrate MLflow's database before several processes open it."""
    from longred.follower import connect

    connect(root, TrackingConfig())


def _start(
    root: Path, repository: Path, name: str, services: Mapping[str, Service], port: int
) -> Service:
    """Start one service in a session of its own and remember it."""
    url = f"http://127.0.0.1:{port}" if port else ""
    prefect = url if name == "prefect" else services["prefect"].url
    environment = _environment(root, repository, prefect)
    if name == "worker":
        environment[TRACKING_VARIABLE] = services["mlflow"].url
    log = folder(root) / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
            _command(root, name, port),
            cwd=repository,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    service = Service(name, process_identity(process.pid), url, port)
    saved = {**services, name: service}
    write_json(folder(root) / "services.json", {key: asdict(value) for key, value in saved.items()})
    return service


def _command(root: Path, name: str, port: int) -> list[str]:
    """Return the command line of a service."""
    from longred.follower import artifact_folder, local_uri

    python = [sys.executable, "-m"]
    if name == "prefect":
        return [*python, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    if name == "worker":
        return [*python, "prefect", "worker", "start", "--pool", WORK_POOL, "--type", "process"]
    return [
        *python,
        "mlflow",
        "server",
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", local_uri(root)),
        *("--artifacts-destination", str(artifact_folder(root))),
        *("--allowed-hosts", "localhost,localhost:*,127.0.0.1,127.0.0.1:*"),
    ]


def _environment(root: Path, repository: Path, prefect: str) -> dict[str, str]:
    """Return the environment of a service; a flow run inherits that of its worker."""
    paths = [str(repository), os.environ.get("PYTHONPATH", "")]
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
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        STORE_VARIABLE: str(root),
    }


def _wait(root: Path, service: Service, path: str, question: Mapping[str, Any]) -> None:
    """Wait until a service answers a real question, not only that it is there."""
    _until(root, service, lambda: _ask(service.url + path, question) is not None)


def _wait_for_pool(root: Path, services: Mapping[str, Service]) -> None:
    """Wait until the worker has made its work pool and told the server that it is there."""
    url = f"{services['prefect'].url}/api/work_pools/{WORK_POOL}/workers/filter"
    _until(root, services["worker"], lambda: bool(_ask(url, {})))


def _until(root: Path, service: Service, works: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not works():
        if not is_alive(service.process) or time.monotonic() > deadline:
            log = folder(root) / f"{service.name}.log"
            text = log.read_text(encoding="utf-8", errors="replace")
            tail = "\n".join(text.splitlines()[-LOG_TAIL_LINES:])
            raise PreflightError(
                f"{TITLES[service.name]} did not start; end of {log}:\n{tail}\n"
                "`longred down` stops the others"
            )
        time.sleep(0.3)


def _ask(url: str, question: Mapping[str, Any] | None = None) -> Any:
    """Return a service's JSON answer, or None where there is none."""
    body = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(  # noqa: S310 - http on this machine
        url, data=body, headers={"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return json.load(answer)
    except (OSError, http.client.HTTPException, json.JSONDecodeError):
        return None


def _deploy(root: Path, repository: Path, services: Mapping[str, Service]) -> None:
    """Apply the deployments; their entrypoints are found from the repository."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    result = subprocess.run(  # noqa: S603 - our own interpreter and arguments
        [*command, "--prefect-file", DEPLOYMENTS_FILE],
        cwd=repository,
        env=_environment(root, repository, services["prefect"].url),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    (folder(root) / "deploy.log").write_text(result.stdout + result.stderr, encoding="utf-8")
    if result.returncode != 0:
        raise PreflightError(
            f"{DEPLOYMENTS_FILE} could not be applied; see {folder(root) / 'deploy.log'}"
        )


def _stop(service: Service) -> None:
    """End a service with everything it started; flow runs lead process groups of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(int(service.process[0]))
        family = [first, *first.children(recursive=True)]
        for process in family:
            _signal(process, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for process in alive:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=STOP_SECONDS)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    """Signal a process, which psutil checks to be the one it was."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
