"""The services that stay up beside a store: Prefect's server, MLflow's, workers and a reaper.

Started once, they outlive the terminal; one folder holds their state and logs. Each is known by its
process id and start time, so that nothing else is ever stopped in its place.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from longred.config import TrackingConfig
from longred.errors import PreflightError
from longred.runs.record import is_alive, process_identity
from longred.services.prefect_api import ask, deployed, limit_pool
from longred.services.programs import MLFLOW_DATABASE_VARIABLE, WORK_POOL, command, environment
from longred.store.artifacts import locked, make_folder, read_json, storage_errors, write_json

DEPLOYMENT = "longred/full-pipeline"
DEPLOYMENTS_FILE = "deployments/prefect.yaml"
DEFAULT_PORTS = {"prefect": 4200, "mlflow": 5000}
TITLES = {"prefect": "Prefect", "mlflow": "MLflow", "worker": "worker", "reaper": "reaper"}
START_SECONDS = 300.0
STOP_SECONDS = 20.0
LOG_TAIL_LINES = 12

Say = Callable[[str], None]


@dataclass(frozen=True)
class Service:
    """One running service.

    Attributes:
        process: id and start time of its first process, which leads a session of its own.
        url: where it is seen in a browser; empty where it has no pages.
        port: where it listens; 0 where it does not.
        gpus: the GPUs that a worker's flow runs see, as CUDA_VISIBLE_DEVICES; empty for all.
    """

    name: str
    process: list[float]
    url: str = ""
    port: int = 0
    gpus: str = ""

    @property
    def title(self) -> str:
        """How it is called in a message."""
        return TITLES.get(self.name, self.name)


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


def mlflow_page(root: Path) -> str:
    """Return the address of the store's own MLflow server; empty if none runs."""
    service = load(root).get("mlflow")
    return service.url if service else ""


def prefect_url(root: Path) -> str | None:
    """Return the API address of the store's own Prefect server, if it runs and answers."""
    service = load(root).get("prefect")
    if service is None:
        return None
    url = f"{service.url}/api"
    return url if ask(f"{url}/health") is not None else None


def up(
    root: Path,
    repository: Path,
    *,
    ports: Mapping[str, int | None],
    say: Say,
    gpu_sets: Sequence[str] = (),
) -> dict[str, Service]:
    """Start what does not run yet, wait until it works, and apply the deployments.

    Where everything runs and answers, nothing is done.

    Args:
        root: the store's root.
        repository: folder that holds `flows` and `deployments`.
        ports: port of `prefect` and of `mlflow`; None for the usual one, or a free one where that
            is taken.
        say: told what is going on.
        gpu_sets: the GPUs of each worker, such as `0,1`; by default one worker has all there are.
            A worker takes one flow run at a time; the others wait in the server's database.

    Raises:
        PreflightError: a port is taken, or a service does not start; the message says what to do.
        LockedError: another `up` or `down` is at work on this store.
    """
    with storage_errors(root), locked(folder(root) / "lock", "the set of services"):
        services = load(root)
        workers = _workers(services, gpu_sets)
        missing = [name for name in ("prefect", "mlflow") if name not in services]
        chosen = {name: choose_port(name, ports[name]) for name in missing}
        if "mlflow" in missing:
            _prepare_mlflow(root)
        for name, port in chosen.items():
            say(f"starting {TITLES[name]} on port {port}")
            services[name] = _start(root, repository, name, services, port)
        _wait(root, services["prefect"], "/api/flows/count", {})
        _wait(root, services["mlflow"], "/api/2.0/mlflow/experiments/search", {"max_results": 1})
        for name, gpus in workers.items():
            say(f"starting a worker{f' for the GPUs {gpus}' if gpus else ''}")
            services[name] = _start(root, repository, name, services, 0, gpus)
        api = f"{services['prefect'].url}/api"
        names = _worker_names(services)
        for name in names:
            _wait_for_pool(root, services[name], api)
        # Asked again where the server's database is busy with what the worker has just said.
        _until(root, services["worker"], lambda: limit_pool(api, WORK_POOL, len(names)))
        if "reaper" not in services:
            say("starting a reaper")
            services["reaper"] = _start(root, repository, "reaper", services, 0)
        if not deployment_names(repository) <= deployed(api):
            say("applying the deployments")
            deploy(root, repository, api)
    return services


def _workers(services: Mapping[str, Service], gpu_sets: Sequence[str]) -> dict[str, str]:
    """Return the workers to start, by name, each with its GPUs.

    Raises:
        PreflightError: a set is empty or shares a GPU with another, or other sets are at work.
    """
    sets = [",".join(each.replace(" ", "").split(",")) for each in gpu_sets]
    single = [gpu for each in sets for gpu in each.split(",")]
    if "" in single or len(set(single)) < len(single):
        raise PreflightError(
            f"--gpus {' --gpus '.join(gpu_sets)}: a GPU is named twice or not at all; "
            "give each worker its own, such as --gpus 0,1 --gpus 2,3"
        )
    wanted = {"worker": "", **{_worker(n): gpus for n, gpus in enumerate(sets)}}
    running = {name: services[name].gpus for name in _worker_names(services)}
    if sets and any(wanted.get(name) != gpus for name, gpus in running.items()):
        raise PreflightError("workers with other GPUs are at work; `longred down` first")
    if running and not sets:
        return {}
    return {name: gpus for name, gpus in wanted.items() if name not in running}


def _worker(number: int) -> str:
    return f"worker-{number + 1}" if number else "worker"


def _worker_names(services: Mapping[str, Service]) -> list[str]:
    return [name for name in services if name.startswith("worker")]


def deploy(root: Path, repository: Path, api: str) -> list[str]:
    """Apply the deployments to a Prefect server and return their names.

    Their entrypoints are found from the repository, whatever the current folder is.

    Args:
        root: the store's root, which flow runs without a worker's own settings use.
        repository: folder that holds `flows` and `deployments`.
        api: address of the server's API.

    Raises:
        PreflightError: the server does not answer or refuses; the message says where its words are.
    """
    if ask(f"{api}/flows/count", {}) is None:
        raise PreflightError(f"{api}: no Prefect server answers; start one with `longred up`")
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    result = subprocess.run(  # noqa: S603 - our own interpreter and arguments
        [*command, "--prefect-file", DEPLOYMENTS_FILE],
        cwd=repository,
        env=environment(root, repository, api.removesuffix("/api")),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    words = folder(root) / "deploy.log"
    make_folder(words.parent)
    words.write_text(result.stdout + result.stderr, encoding="utf-8")
    names = deployment_names(repository)
    # A file that Prefect cannot read is a warning to it, and its exit status is 0.
    missing = names - deployed(api)
    if result.returncode != 0 or missing:
        raise PreflightError(f"{DEPLOYMENTS_FILE} could not be applied; see {words}")
    return [f"longred/{name}" for name in sorted(names)]


def deployment_names(repository: Path) -> set[str]:
    """Return the names of the deployments that the repository describes."""
    text = (repository / DEPLOYMENTS_FILE).read_text(encoding="utf-8")
    return {each["name"] for each in yaml.safe_load(text)["deployments"]}


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
        last = [name for name in ("mlflow", "prefect") if name in services]
        stopped = [services[name] for name in [*(services.keys() - last), *last]]
        for service in stopped:
            _stop(service)
        state.unlink(missing_ok=True)
    return [service.title for service in stopped]


def status(root: Path) -> list[str]:
    """Return a line for each service."""
    services = load(root)
    lines = []
    for name in [*TITLES, *(services.keys() - TITLES.keys())]:
        service = services.get(name)
        if service is None:
            lines.append(f"{TITLES[name]:<12} stopped")
        else:
            place = service.url or f"process {int(service.process[0])}"
            gpus = f", GPUs {service.gpus}" if service.gpus else ""
            lines.append(f"{service.title:<12} running    {place}{gpus}")
    return lines


def describe(services: Mapping[str, Service], repository: Path) -> str:
    """Return where the services are seen and how to start a flow run."""
    prefect = services["prefect"]
    lines = [f"Prefect  {prefect.url}", f"MLflow   {services['mlflow'].url}", ""]
    if prefect.port != DEFAULT_PORTS["prefect"] or Path.cwd() != repository:
        lines.append(f"export PREFECT_API_URL={prefect.url}/api")
    lines.append(f"prefect deployment run {DEPLOYMENT}")
    lines.append(
        "prefect deployment run longred/evaluation -p run=latest "
        "-p 'overrides=[\"evaluation.short.num_samples=200\"]'"
    )
    return "\n".join(lines)


def port_problem(port: int) -> str | None:
    """Return why nothing can listen on a port of this machine, or None where something can."""
    try:
        with socket.create_server(("127.0.0.1", port)):
            return None
    except OSError as error:
        return os.strerror(error.errno or 0)


def choose_port(name: str, wanted: int | None) -> int:
    """Return the wanted port, else the usual one, else a free one.

    Raises:
        PreflightError: the wanted port is taken.
    """
    port = DEFAULT_PORTS[name] if wanted is None else wanted
    problem = port_problem(port)
    if problem is None:
        return port
    if wanted is not None:
        raise PreflightError(
            f"port {port} for {TITLES[name]} is taken ({problem}); "
            f"free it, or choose another: longred up --{name}-port {port + 1}"
        )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _prepare_mlflow(root: Path) -> None:
    """Make or migrate MLflow's database before several processes open it."""
    from longred.runs.mlflow_home import connect

    connect(root, TrackingConfig(uri=os.environ.get(MLFLOW_DATABASE_VARIABLE)))


def _start(
    root: Path,
    repository: Path,
    name: str,
    services: Mapping[str, Service],
    port: int,
    gpus: str = "",
) -> Service:
    """Start one service in a session of its own and remember it."""
    url = f"http://127.0.0.1:{port}" if port else ""
    prefect = url if name == "prefect" else services["prefect"].url
    mlflow = services["mlflow"].url if "mlflow" in services and not port else ""
    log = folder(root) / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
            command(root, name, port),
            cwd=repository,
            env=environment(root, repository, prefect, mlflow=mlflow, gpus=gpus),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    service = Service(name, process_identity(process.pid), url, port, gpus)
    saved = {**services, name: service}
    write_json(folder(root) / "services.json", {key: asdict(value) for key, value in saved.items()})
    return service


def _wait(root: Path, service: Service, path: str, question: Mapping[str, Any]) -> None:
    """Wait until a service answers a real question, not only that it is there."""
    url, is_prefect = service.url + path, service.name == "prefect"
    _until(root, service, lambda: ask(url, question, is_prefect=is_prefect) is not None)


def _wait_for_pool(root: Path, worker: Service, api: str) -> None:
    """Wait until a worker has made its work pool and told the server that it is there."""
    url = f"{api}/work_pools/{WORK_POOL}/workers/filter"
    _until(root, worker, lambda: bool(ask(url, {})))


def _until(root: Path, service: Service, works: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not works():
        if not is_alive(service.process) or time.monotonic() > deadline:
            log = folder(root) / f"{service.name}.log"
            text = log.read_text(encoding="utf-8", errors="replace")
            tail = "\n".join(text.splitlines()[-LOG_TAIL_LINES:])
            raise PreflightError(
                f"{service.title} did not start; end of {log}:\n{tail}\n"
                "`longred down` stops the others"
            )
        time.sleep(0.3)


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
