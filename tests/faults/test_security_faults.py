"""Access control, secrets that are never written, and code that is never executed."""

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import SMALL, Pipeline, free_ports, until

from longred.cli.flow_host import repository
from longred.config import RunConfig
from longred.config.section import Section
from longred.runs.record import load_config
from longred.services import servers as services

PASSWORD = "canary-password-of-prefect"
SECRETS = {
    "PREFECT_SERVER_API_AUTH_STRING": f"admin:{PASSWORD}",
    "PREFECT_API_AUTH_STRING": f"admin:{PASSWORD}",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "canary-key-of-sessions",
    "MLFLOW_TRACKING_USERNAME": "admin",
    "MLFLOW_TRACKING_PASSWORD": "canary-password-of-mlflow",
    "HF_TOKEN": "hf_canaryTokenOfTheHubThatNobodySees",
    "AWS_SECRET_ACCESS_KEY": "canary-key-of-the-object-store",
    "LONGRED_WEBHOOK_URL": "http://127.0.0.1:9/canary-address-of-the-webhook",
}
CANARY = re.compile(rb"canary[-A-Z]")
CLIENT = httpx.Client(timeout=120)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline whose servers require passwords, with every secret in the environment."""
    private = tmp_path_factory.mktemp("private")
    settings = private / "mlflow-auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
        f"admin_password = {SECRETS['MLFLOW_TRACKING_PASSWORD']}\n"
        f"database_uri = sqlite:///{private}/users.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    made = Pipeline(tmp_path_factory.mktemp("secured"), free_ports())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        patch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(settings))
        try:
            made.up()
            yield made
        finally:
            made.end()


@pytest.mark.slow
def test_without_a_password_both_servers_refuse(secured: Pipeline) -> None:
    experiments = f"{secured.mlflow}/api/2.0/mlflow/experiments/search"
    asked = [(f"{secured.api}/flows/count", {}), (experiments, {"max_results": 1})]
    for url, question in asked:
        assert CLIENT.post(url, json=question).status_code == 401
        assert CLIENT.post(url, json=question, auth=("admin", "guess")).status_code == 401
    health = [sys.executable, str(repository() / "docker/health.py")]
    known = dict(os.environ)
    unknown = {name: value for name, value in known.items() if name not in SECRETS}

    def check(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [*health, *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    for name, url in (("prefect", secured.api.removesuffix("/api")), ("mlflow", secured.mlflow)):
        # The check sends one request, which may time out on a busy server; retry, as Docker does.
        until(lambda asked=(name, url): check(*asked, env=known).returncode == 0)
        until(lambda asked=(name, url): "401" in check(*asked, env=unknown).stderr)
        assert check(name, url, env=unknown).returncode == 1


@pytest.mark.slow
def test_a_command_with_a_wrong_password_says_so_before_anything_runs(secured: Pipeline) -> None:
    process = secured.start("run", "demo", environment={"PREFECT_API_AUTH_STRING": "admin:guess"})
    assert process.wait(300) == 3
    assert "refuses the name and password in PREFECT_API_AUTH_STRING" in secured.output()
    assert not secured.store.runs.exists()


@pytest.mark.slow
def test_mlflow_refuses_foreign_hosts_and_paths_that_leave_its_folder(secured: Pipeline) -> None:
    auth = ("admin", SECRETS["MLFLOW_TRACKING_PASSWORD"])
    search = f"{secured.mlflow}/api/2.0/mlflow/experiments/search"
    foreign = CLIENT.post(search, json={"max_results": 1}, auth=auth, headers={"Host": "evil.test"})
    assert foreign.status_code == 403
    made = CLIENT.post(search, json={"max_results": 1}, auth=auth)
    assert made.status_code == 200
    experiment = made.json()["experiments"][0]["experiment_id"]
    create = f"{secured.mlflow}/api/2.0/mlflow/runs/create"
    run = CLIENT.post(create, json={"experiment_id": experiment}, auth=auth).json()["run"]["info"]
    for path in ("../../../etc", "/etc", "%2e%2e/%2e%2e/etc"):
        answer = CLIENT.get(
            f"{secured.mlflow}/api/2.0/mlflow/artifacts/list",
            params={"run_id": run["run_id"], "path": path},
            auth=auth,
        )
        assert answer.status_code == 400, answer.text
    upload = f"{secured.mlflow}/api/2.0/mlflow-artifacts/artifacts/%2e%2e/%2e%2e/outside.txt"
    assert CLIENT.put(upload, content=b"x", auth=auth).status_code in (400, 404)
    assert not list(secured.root.parent.glob("outside.txt"))


@pytest.mark.slow
def test_no_secret_is_written_anywhere(secured: Pipeline) -> None:
    assert secured.run("run", "demo", "--only", "selection") == 2, secured.output()
    assert "data is not made yet" in secured.output()
    # A refused run leaves no record, so that the deployment needs a finished run to start from.
    settings = [each for each in SMALL if each.startswith("data.")]
    assert secured.run("run", "demo", *settings, "--only", "data") == 0, secured.output()
    flow_run = secured.run_deployment("data", overrides=["data.num_held_out_tokens=2048"])
    secured.wait_for_state(flow_run, "Completed")
    assert secured.record().prefect_flow_run_id == flow_run
    until(lambda: secured.record().mlflow_run_id)
    written = [path for path in secured.root.rglob("*") if path.is_file()]
    assert {"run.json", "prefect.db", "mlflow.db", "MANIFEST.json", "worker.log"} <= {
        path.name for path in written
    }
    assert [str(path) for path in written if CANARY.search(path.read_bytes())] == []
    for service in services.load(secured.root).values():
        command = Path(f"/proc/{int(service.process[0])}/cmdline").read_bytes()
        assert not CANARY.search(command)


@pytest.mark.parametrize(
    "setting",
    [
        "tracking.uri=postgresql://longred:canary-x@db/mlflow",
        "tracking.uri=https://mlflow.test/?api_key=canary-x",
        "store.remote=s3://bucket/x?X-Amz-Signature=canary-x",
        "model.path=hf_canaryTokenOfTheHubThatNobodySees",
        "store.remote=s3://AKIACANARYCANARYCAN0/x",
    ],
)
def test_a_secret_among_the_settings_is_refused_and_not_repeated(setting: str) -> None:
    with pytest.raises(Exception, match="instead") as caught:
        load_config("demo", [setting])
    assert str(caught.value).startswith(setting.partition("=")[0] + ": holds ")
    assert "canary" not in str(caught.value).lower()


def test_no_setting_is_meant_for_a_secret() -> None:
    def names(kind: type[Section]) -> Iterator[str]:
        for name, field in kind.model_fields.items():
            yield name
            for each in (field.annotation, *typing.get_args(field.annotation)):
                if isinstance(each, type) and issubclass(each, Section):
                    yield from names(each)

    found = set(names(RunConfig))
    assert {"path", "num_tokens", "remote"} <= found
    wrong = re.compile(r"(^|_)(token|key|secret|password|credentials?)$")
    assert {name for name in found if wrong.search(name)} == {"add_bos_token"}


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def demo_copy(folder: Path) -> Path:
    from longred import demo

    return Path(shutil.copytree(Path(demo.model_path()), folder))


def say_yes(tmp_path: Path, model: Path) -> subprocess.CompletedProcess[str]:
    """Dry-run the pipeline on a model and answer yes to every prompt."""
    return subprocess.run(
        [sys.executable, "-m", "longred.cli", "run", "demo", f"model.path={model}", "--dry-run"],
        env={**os.environ, "LONGRED_STORE": str(tmp_path / "store"), "HF_HUB_OFFLINE": "1"},
        cwd=repository(),
        input="yes\ny\n1\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_a_pickled_model_is_refused_before_it_is_read(tmp_path: Path) -> None:
    model, canary = demo_copy(tmp_path / "model"), tmp_path / "canary"
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Payload(canary)}))
    pickle.loads((model / "pytorch_model.bin").read_bytes())  # noqa: S301 - the payload works
    canary.unlink()
    result = say_yes(tmp_path, model)
    assert result.returncode == 2, result.stderr
    assert "pickled" in result.stderr
    assert "safetensors" in result.stderr
    assert not canary.exists()


@pytest.mark.slow
def test_code_that_comes_with_a_model_is_refused_whatever_the_user_answers(tmp_path: Path) -> None:
    model, canary = demo_copy(tmp_path / "model"), tmp_path / "canary"
    (model / "evil.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (model / "config.json").write_text(json.dumps(config))
    result = say_yes(tmp_path, model)
    assert result.returncode == 2, result.stderr
    assert "auto_map" in result.stderr
    assert not canary.exists()


SOURCES = [
    path
    for folder in ("longred", "tasks", "flows", "docker")
    for path in sorted((repository() / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(repository())))
def test_nothing_unpickles_and_every_loader_refuses_foreign_code(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not modules & {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, ast.unparse(node.func.value)
            assert (owner, name) not in {("torch", "load"), ("torch", "save"), ("yaml", "load")}
            if name in ("from_pretrained", "from_config"):
                given = {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert given.get("trust_remote_code") == "False", f"{path}:{node.lineno}"


@pytest.mark.parametrize("place", ["../../x", "/etc/x", "x/../../y", "a\0b", "."])
def test_no_name_leads_out_of_the_store(place: str, tmp_path: Path) -> None:
    from longred.errors import ConfigError
    from longred.runs.record import load_run
    from longred.store.artifacts import Store

    store = Store(tmp_path / "store")
    known = store.runs / "20260101-000000-demo-aaaa"
    known.mkdir(parents=True)
    (known / "run.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="no such run"):
        load_run(store, place)
    for setting in (f"name={place}", f"data.sources.0.name={place}"):
        key = setting.partition("=")[0]
        with pytest.raises(ConfigError, match=f"^{re.escape(key)}: "):
            load_config("demo", [f"store.path={store.root}", json.dumps(setting)[1:-1]])
    for make in (lambda: store.find(place, "ab"), lambda: store.find("data", place)):
        with pytest.raises(ValueError, match="is not the name of an artifact"):
            make()
    assert sorted(tmp_path.rglob("*")) == before
