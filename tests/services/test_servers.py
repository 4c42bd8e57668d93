"""Services start together, are identified by their process, and stop together."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live import free_ports, until

import longred
from longred.cli.flow_host import repository
from longred.errors import PreflightError
from longred.runs.record import is_alive, process_identity
from longred.runs.scope import STAGES
from longred.services import prefect_api
from longred.services import servers as services
from longred.services.prefect_api import deployed
from longred.services.programs import WORK_POOL, command, environment
from longred.services.temporary_server import temporary_server


def test_a_taken_port_is_named_with_the_way_out_and_nothing_is_started(tmp_path: Path) -> None:
    ports = free_ports()
    with (
        socket.create_server(("127.0.0.1", ports["mlflow"])),
        pytest.raises(PreflightError) as caught,
    ):
        services.up(tmp_path, repository(), ports=ports, say=print)
    assert caught.value.exit_code == 3
    assert f"port {ports['mlflow']} for MLflow is taken" in str(caught.value)
    assert f"--mlflow-port {ports['mlflow'] + 1}" in str(caught.value)
    assert services.load(tmp_path) == {}


def test_without_a_wish_a_taken_port_is_left_for_a_free_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setitem(services.DEFAULT_PORTS, "prefect", port)
        assert services.port_problem(port)
        assert services.choose_port("prefect", None) != port
    assert services.choose_port("prefect", None) == port
    assert services.choose_port("prefect", free_ports()["prefect"]) != port


@pytest.mark.parametrize("sets", [["0,1", "1,2"], ["0,0"], ["0,"], [""]])
def test_a_gpu_belongs_to_one_worker(sets: list[str], tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="named twice or not at all") as caught:
        services.up(tmp_path, repository(), ports=free_ports(), say=print, gpu_sets=sets)
    assert "--gpus 0,1 --gpus 2,3" in str(caught.value)
    assert services.load(tmp_path) == {}


def test_a_workers_flow_runs_see_its_gpus_only(tmp_path: Path) -> None:
    of_all = environment(tmp_path, repository(), "http://127.0.0.1:4200")
    of_two = environment(tmp_path, repository(), "http://127.0.0.1:4200", gpus="2,3")
    assert of_all.get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")
    assert of_two["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_logins_of_mlflow_need_a_key_of_its_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / "auth.ini"))
    monkeypatch.delenv("MLFLOW_FLASK_SERVER_SECRET_KEY", raising=False)
    with pytest.raises(PreflightError, match="MLFLOW_FLASK_SERVER_SECRET_KEY is not"):
        command(tmp_path, "mlflow", 5000)
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "long and random")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://db/mlflow")
    words = command(tmp_path, "mlflow", 5000)
    assert "basic-auth" in words
    assert not any("postgresql" in word or "long and random" in word for word in words)


def test_deployments_are_not_applied_where_no_server_answers(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="no Prefect server answers"):
        services.deploy(tmp_path, repository(), "http://127.0.0.1:9/api")


def test_deployments_of_another_version_or_folder_are_applied_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deployment(name: str, version: str, folder: Path) -> dict[str, object]:
        steps = [{prefect_api.WORKING_DIRECTORY_STEP: {"directory": str(folder)}}]
        return {"name": name, "version": version, "pull_steps": steps, "tags": ["longred"]}

    found = [
        deployment("data", longred.__version__, tmp_path),
        deployment("report", "0.0.1", tmp_path),
        deployment("training", longred.__version__, tmp_path / "gone"),
    ]
    monkeypatch.setattr(prefect_api, "ask", lambda *question: found)
    assert deployed("http://127.0.0.1:9/api") == {"data", "report", "training"}
    assert deployed("http://127.0.0.1:9/api", tmp_path) == {"data"}


def test_the_command_that_starts_a_flow_run_can_be_pasted_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = {
        name: services.Service(name, [], f"http://127.0.0.1:{port}", port)
        for name, port in services.DEFAULT_PORTS.items()
    }
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr("shutil.which", lambda name: str(tmp_path / "bin" / name))
    assert "\nprefect deployment run longred/full" in services.describe(running, tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: f"/elsewhere/{name}")
    text = services.describe(running, tmp_path)
    assert f"\n{sys.executable} -m prefect deployment run longred/full" in text
    assert "export PREFECT_API_URL=http://127.0.0.1:4200/api\n" in text


def test_without_services_there_is_nothing_to_stop(tmp_path: Path) -> None:
    assert services.down(tmp_path) == []
    assert services.prefect_url(tmp_path) is None
    assert all("stopped" in line for line in services.status(tmp_path))


def test_a_process_that_took_over_an_id_is_not_taken_for_the_service(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        pid, started = process_identity(child.pid)
        state = {
            "worker": {"name": "worker", "process": [pid, started - 1000], "url": "", "port": 0}
        }
        services.folder(tmp_path).mkdir()
        (services.folder(tmp_path) / "services.json").write_text(json.dumps(state))
        assert services.load(tmp_path) == {}
        assert services.down(tmp_path) == []
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


@pytest.mark.medium
def test_a_temporary_server_answers_and_ends_with_its_owner(tmp_path: Path) -> None:
    program = (
        "import sys, os, pathlib\n"
        "from longred.services.temporary_server import TemporaryServer\n"
        "server = TemporaryServer(pathlib.Path(sys.argv[1]))\n"
        "server.wait()\n"
        "print(server._process.pid, server.url, flush=True)\n"
        "sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository())},
    )
    assert owner.stdout
    pid, url = owner.stdout.readline().split()
    server = process_identity(int(pid))
    assert httpx.get(f"{url}/health", timeout=120).status_code == 200
    owner.kill()
    owner.wait()
    until(lambda: not is_alive(server))
    assert (tmp_path / "prefect" / "prefect.db").is_file()
    log = tmp_path / "prefect" / "prefect.db-wal"
    assert not log.exists() or log.stat().st_size == 0


def test_a_damaged_database_is_named_before_a_server_starts(tmp_path: Path) -> None:
    database = tmp_path / "prefect" / "prefect.db"
    database.parent.mkdir()
    database.write_bytes(b"garbage" * 1000)
    with pytest.raises(PreflightError, match=f"mv {database}"), temporary_server(tmp_path):
        raise AssertionError("the server was started")
    with pytest.raises(PreflightError, match=f"mv {database}"):
        services.up(tmp_path, repository(), ports=free_ports(), say=print)


@pytest.mark.medium
def test_a_server_that_cannot_start_is_reported_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_MAX_PARAMETER_SIZE", "not a number")
    with temporary_server(tmp_path) as server, pytest.raises(PreflightError, match=r"server\.log"):
        server.wait()


@pytest.fixture
def started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, services.Service]]:
    """All services of a new store, on free ports, started from an unrelated folder."""
    monkeypatch.chdir(tmp_path)
    yield services.up(tmp_path, repository(), ports=free_ports(), say=print)
    services.down(tmp_path)


@pytest.mark.slow
def test_up_serves_the_deployment_and_down_leaves_no_process(
    tmp_path: Path, started: dict[str, services.Service]
) -> None:
    assert set(started) == {"prefect", "mlflow", "worker", "reaper"}
    words: list[str] = []
    again = services.up(tmp_path, repository(), ports=free_ports(), say=words.append)
    assert (again, words) == (started, [])
    url = services.prefect_url(tmp_path)
    answer = httpx.get(f"{url}/deployments/name/{services.DEPLOYMENT}", timeout=120)
    deployment = answer.json()
    assert deployment["work_pool_name"] == WORK_POOL
    assert deployed(str(url)) == {"full-pipeline", "study", *STAGES[1:]}
    properties = deployment["parameter_openapi_schema"]["properties"]
    assert list(properties) == ["recipe", "overrides", "start_from"]
    assert services.describe(started, repository()).count("http://127.0.0.1") >= 2
    assert services.down(tmp_path)[-2:] == ["MLflow", "Prefect"]
    for service in started.values():
        assert not is_alive(service.process)
    assert services.down(tmp_path) == []
