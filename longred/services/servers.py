"""Long-running services of a store: Prefect's server, MLflow's, workers and a reaper.

They outlive the terminal that started them; one folder holds their state and logs. Each is
identified by process id and start time, so that no other process is ever stopped by mistake.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import psutil
import yaml

from longred.config import TrackingConfig
from longred.errors import MismatchError, PreflightError
from longred.runs.description import runs_page
from longred.runs.mlflow_home import connect, database
from longred.runs.record import is_alive, process_identity
from longred.services.prefect_api import ask, deployed
from longred.services.programs import MLFLOW_DATABASE_VARIABLE, WORK_POOL, command, environment
from longred.services.temporary_server import prefect_database
from longred.store.artifacts import make_folder, read_json, storage_errors, write_json
from longred.store.databases import refuse_damaged, remove_log
from longred.store.locks import locked

DEPLOYMENT = "longred/full-pipeline"
DEPLOYMENTS_FILE = "deployments/prefect.yaml"
DEFAULT_PORTS = {"prefect": 4200, "mlflow": 5000}
TITLES = {"prefect": "Prefect", "mlflow": "MLflow", "worker": "worker", "reaper": "reaper"}
START_SECONDS = 300.0
STOP_SECONDS = 20.0
LOG_TAIL_LINES = 12


@dataclass(frozen=True)
class Service:
    """One running service.

    Attributes:
        process: id and start time of its first process, which leads a session of its own.
        url: its web page; empty if it has none.
        port: the port it listens on; 0 if none.
        gpus: GPUs visible to a worker's flow runs, as CUDA_VISIBLE_DEVICES; empty for all.
    """

    name: str
    process: list[float]
    url: str = ""
    port: int = 0
    gpus: str = ""

    @property
    def title(self) -> str:
        """Its name in messages."""
        return TITLES.get(self.name, self.name)


def folder(root: Path) -> Path:
    """Return the folder of the services' state and logs."""
    return root / "services"


def load(root: Path) -> dict[str, Service]:
    """Return the services of a store that are still running.

    Raises:
        MismatchError: their list is damaged.
    """
    path = folder(root) / "services.json"
    if not path.is_file():
        return {}
    try:
        services = {name: Service(**values) for name, values in read_json(path).items()}
    except (AttributeError, TypeError, MismatchError) as error:
        raise MismatchError(
            f"{path}: is not a list of services; end them by hand (`ps`) and delete it"
        ) from error
    return {name: service for name, service in services.items() if is_alive(service.process)}


def mlflow_page(root: Path) -> str:
    """Return the URL of the store's own MLflow server; empty if none runs."""
    service = load(root).get("mlflow")
    return service.url if service else ""


def mlflow_runs_page(url: str) -> str:
    """Return the URL of the list of runs on an MLflow server; its first page if there is none."""
    name = TrackingConfig().experiment
    query = f"{url}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(name)}"
    found = ask(query, is_prefect=False)
    return runs_page(url, found["experiment"]["experiment_id"]) if found else url


def prefect_url(root: Path) -> str | None:
    """Return the API URL of the store's own Prefect server, if it runs and answers."""
    service = load(root).get("prefect")
    if service is None:
        return None
    url = f"{service.url}/api"
    return url if ask(f"{url}/health") is not None else None


def answers(service: Service) -> bool:
    """Return whether a server answers a query that needs its database."""
    if service.name == "prefect":
        return ask(f"{service.url}/api/flows/count", {}) is not None
    url = f"{service.url}/api/2.0/mlflow/experiments/search"
    return ask(url, {"max_results": 1}, is_prefect=False) is not None


def up(
    root: Path,
    repository: Path,
    *,
    ports: Mapping[str, int | None],
    say: Callable[[str], None],
    gpu_sets: Sequence[str] = (),
) -> dict[str, Service]:
    """Start the services that are not running, wait until they work, and apply the deployments.

    Args:
        root: root folder of the store.
        repository: folder that holds `flows` and `deployments`.
        ports: ports of `prefect` and `mlflow`; None for the default, or a free one if it is taken.
        say: called with progress messages.
        gpu_sets: GPUs of each worker, such as `0,1`; by default one worker has all. A worker
            executes one flow run at a time; others wait in the server's database.

    Raises:
        PreflightError: a port is taken, a database is damaged, or a service does not start; the
            message says what to do.
        LockedError: another `up` or `down` is running on this store.
    """
    with storage_errors(root), locked(folder(root) / "lock", "the set of services"):
        services = load(root)

        def start(name: str, port: int = 0, gpus: str = "") -> None:
            services[name] = _start(root, repository, name, services, port, gpus)

        workers = _missing_workers(services, gpu_sets)
        missing = [name for name in DEFAULT_PORTS if name not in services]
        chosen = {name: choose_port(name, ports[name]) for name in missing}
        if "prefect" in missing:
            refuse_damaged(prefect_database(root), "Prefect")
        if "mlflow" in missing:
            # Create or migrate the database before several processes open it.
            connect(root, TrackingConfig(uri=os.environ.get(MLFLOW_DATABASE_VARIABLE)))
        for name, port in chosen.items():
            say(f"starting {TITLES[name]} on port {port}")
            start(name, port)
        for name in DEFAULT_PORTS:
            _wait_until(partial(answers, services[name]), root, services[name])
        for name, gpus in workers.items():
            say(f"starting a worker{f' for the GPUs {gpus}' if gpus else ''}")
            start(name, gpus=gpus)
        api = f"{services['prefect'].url}/api"
        pool = f"{api}/work_pools/{WORK_POOL}"
        names = _worker_names(services)
        for name in names:
            _wait_until(lambda: bool(ask(f"{pool}/workers/filter", {})), root, services[name])
        # One flow run per worker at a time. The server counts them in its database, so the limit
        # survives restarts. Repeated while that database is busy registering the worker.
        limit = {"concurrency_limit": len(names)}
        _wait_until(lambda: ask(pool, limit, method="PATCH") is not None, root, services["worker"])
        if "reaper" not in services:
            say("starting a reaper")
            start("reaper")
        # A worker that runs already belongs to the installation that applied the deployments.
        if not deployment_names(repository) <= deployed(api, repository if workers else None):
            say("applying the deployments")
            deploy(root, repository, api)
    return services


def _missing_workers(services: Mapping[str, Service], gpu_sets: Sequence[str]) -> dict[str, str]:
    """Return the workers to start, by name, each with its GPUs.

    Raises:
        PreflightError: a set is empty or shares a GPU with another, or running workers have others.
    """
    sets = [",".join(each.replace(" ", "").split(",")) for each in gpu_sets]
    single = [gpu for each in sets for gpu in each.split(",")]
    if "" in single or len(set(single)) < len(single):
        raise PreflightError(
            f"--gpus {' --gpus '.join(gpu_sets)}: a GPU is named twice or not at all; "
            "give each worker its own, such as --gpus 0,1 --gpus 2,3"
        )
    wanted = {f"worker-{n}" if n > 1 else "worker": gpus for n, gpus in enumerate(sets or [""], 1)}
    running = {name: services[name].gpus for name in _worker_names(services)}
    if sets and any(wanted.get(name) != gpus for name, gpus in running.items()):
        raise PreflightError("workers with other GPUs are running; `longred down` first")
    if running and not sets:
        return {}
    return {name: gpus for name, gpus in wanted.items() if name not in running}


def _worker_names(services: Mapping[str, Service]) -> list[str]:
    return [name for name in services if name.startswith("worker")]


def deploy(root: Path, repository: Path, api: str) -> list[str]:
    """Apply the deployments to a Prefect server and return their names.

    Entrypoints are resolved from the repository, whatever the current folder is.

    Args:
        root: root folder of the store, for flow runs whose worker does not set one.
        repository: folder that holds `flows` and `deployments`.
        api: URL of the server's API.

    Raises:
        PreflightError: the server does not answer or refuses; the message names the log.
    """
    if ask(f"{api}/flows/count", {}) is None:
        raise PreflightError(
            f"no Prefect server answers at {api}; start one with `longred up`, or set "
            "PREFECT_API_URL to the address of one that runs"
        )
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
    log = folder(root) / "deploy.log"
    make_folder(log.parent)
    log.write_text(result.stdout + result.stderr, encoding="utf-8")
    names = deployment_names(repository)
    # Prefect only warns about a file that it cannot read, and exits with 0.
    if result.returncode != 0 or names - deployed(api):
        raise PreflightError(f"{DEPLOYMENTS_FILE} could not be applied; see {log}")
    return [f"longred/{name}" for name in sorted(names)]


def deployment_names(repository: Path) -> set[str]:
    """Return the names of the deployments in the repository's file."""
    text = (repository / DEPLOYMENTS_FILE).read_text(encoding="utf-8")
    return {each["name"] for each in yaml.safe_load(text)["deployments"]}


def down(root: Path) -> list[str]:
    """Stop the services of a store, workers and their flow runs first; return their names.

    Raises:
        LockedError: another `up` or `down` is running on this store.
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
        for path in (prefect_database(root), database(root)):
            remove_log(path)
    return [service.title for service in stopped]


def status(root: Path) -> list[str]:
    """Return one line per service."""
    services = load(root)
    lines = []
    for name in [*TITLES, *(services.keys() - TITLES.keys())]:
        service = services.get(name)
        if service is None:
            lines.append(f"{TITLES[name]:<12} stopped")
        else:
            location = service.url or f"process {int(service.process[0])}"
            gpus = f", GPUs {service.gpus}" if service.gpus else ""
            lines.append(f"{service.title:<12} running    {location}{gpus}")
    return lines


def describe(services: Mapping[str, Service], repository: Path) -> str:
    """Return the URLs of the services and the commands that start a flow run."""
    prefect = services["prefect"]
    command = _prefect_command()
    lines = [f"Prefect  {prefect.url}", f"MLflow   {mlflow_runs_page(services['mlflow'].url)}", ""]
    if prefect.port != DEFAULT_PORTS["prefect"] or Path.cwd() != repository:
        lines.append(f"export PREFECT_API_URL={prefect.url}/api")
    lines.append(f"{command} deployment run {DEPLOYMENT}")
    lines.append(
        f"{command} deployment run longred/evaluation -p run=latest "
        "-p 'overrides=[\"evaluation.short.num_samples=200\"]'"
    )
    return "\n".join(lines)


def _prefect_command() -> str:
    """Return the command of this environment's Prefect, in full if the shell would not find it."""
    here = Path(sys.executable).with_name("prefect")
    found = shutil.which("prefect")
    # pipx and uv link the command of the installed package only.
    return "prefect" if found and Path(found) == here else f"{sys.executable} -m prefect"


def port_problem(port: int) -> str | None:
    """Return why no server can listen on a port of this machine; None if one can."""
    try:
        with socket.create_server(("127.0.0.1", port)):
            return None
    except OSError as error:
        return os.strerror(error.errno or 0)


def choose_port(name: str, wanted: int | None) -> int:
    """Return the wanted port, or by default the usual one if it is free, else any free one.

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


def _start(
    root: Path,
    repository: Path,
    name: str,
    services: Mapping[str, Service],
    port: int,
    gpus: str,
) -> Service:
    """Start one service in its own session and add it to `services.json`."""
    url = f"http://127.0.0.1:{port}" if port else ""
    prefect = url if name == "prefect" else services["prefect"].url
    mlflow = services["mlflow"].url if "mlflow" in services and not port else ""
    with (folder(root) / f"{name}.log").open("ab") as output:
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


def _wait_until(works: Callable[[], bool], root: Path, service: Service) -> None:
    """Wait until a service works.

    Raises:
        PreflightError: it ended or takes too long; the message has the end of its log.
    """
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
    """End a service and all its descendants; flow runs lead process groups of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(int(service.process[0]))
        processes = [first, *first.children(recursive=True)]
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(process)
            _, processes = psutil.wait_procs(processes, timeout=STOP_SECONDS)
