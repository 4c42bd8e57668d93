"""Check the image, the compose file and the Kubernetes manifests against the published schemas.

No container engine and no cluster is needed: only the files that they read are checked.
"""

import configparser
import json
import os
import re
import runpy
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "deployments" / "kubernetes"
VERSION = "1.32"
PINNED = re.compile(r"\S+:[\w.-]*\d+[.-]\d+\S*@sha256:[0-9a-f]{64}")
"""An image by full version and digest."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())


def variables(text: str) -> set[str]:
    return set(re.findall(r"\$\{(\w+)", text))


def test_compose_file_follows_the_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    file = str(ROOT / "docker" / "compose.yaml")
    result = subprocess.run([*command, file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_only_loopback_is_published(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_our_containers_can_do_little(compose: dict[str, Any]) -> None:
    ours = [s for s in compose["services"].values() if s["image"].startswith("longred:")]
    assert len(ours) == 6
    for service in ours:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert re.findall(r"^USER (.+)$", dockerfile, re.MULTILINE) == ["10001:10001"]


def test_each_of_our_images_is_built_once(compose: dict[str, Any]) -> None:
    services = compose["services"]
    ours = {name: s for name, s in services.items() if s["image"].startswith("longred:")}
    builders = {s["image"]: name for name, s in ours.items() if "build" in s}
    assert builders == {"longred:cpu": "prefect", "longred:gpu": "worker-gpu"}
    for name, service in ours.items():
        is_builder = builders[service["image"]] == name
        # `never`: otherwise compose looks for the image in a registry first.
        assert service["pull_policy"] == ("build" if is_builder else "never")
        # A builder outside the profile of a service would leave it without its image.
        assert is_builder or "profiles" not in services[builders[service["image"]]]


def test_images_of_others_are_pinned(compose: dict[str, Any]) -> None:
    images = [s["image"] for s in compose["services"].values()]
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG PYTHON=(.+)$", dockerfile, re.MULTILINE)
    others = [image for image in images if not image.startswith("longred:")]
    assert len(others) == 2
    assert all(PINNED.fullmatch(image) for image in [*others, base])
    stages = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    assert stages == ["${PYTHON}", "${PYTHON}", "${DEVICE}"]


def test_writable_places_let_kernels_be_loaded_and_belong_to_the_user(
    compose: dict[str, Any],
) -> None:
    for service in compose["services"].values():
        if service.get("read_only"):
            places = dict(place.split(":") for place in service["tmpfs"])
            assert all("exec" in options.split(",") for options in places.values())
            assert places["/home/longred"] == "exec,uid=10001,gid=10001,mode=0700"
            # Compose cannot add a file to a container with a read-only root.
            assert "configs" not in service
            assert "secrets" not in service


def test_downloads_stay_on_the_store(compose: dict[str, Any]) -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    home = "/store/huggingface"
    assert f"HF_HOME={home}" in dockerfile
    for name in ("worker", "worker-gpu"):
        service = compose["services"][name]
        assert service["environment"]["HF_TOKEN"] == "${HF_TOKEN:-}"
        assert service["volumes"] == ["store:/store"]
    pool = json.loads((KUBERNETES / "work-pool.json").read_text())
    assert pool["variables"]["properties"]["env"]["default"]["HF_HOME"] == home
    for file in ("run.yaml", "training-nodes.yaml"):
        assert f"{{name: HF_HOME, value: {home}}}" in (KUBERNETES / file).read_text()


def test_pip_caches_where_the_cache_is_mounted() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    (folder,) = re.findall(r"^ARG PIP_CACHE_DIR=(\S+)", text, re.MULTILINE)
    steps = [
        step for step in re.split(r"^(?=RUN )", text, flags=re.MULTILINE) if "pip inst" in step
    ]
    assert len(steps) == 2
    for step in steps:
        assert step.startswith(f"RUN --mount=type=cache,target={folder} ")
    # In the environment of the image the variable would outlive the mount.
    assert not re.search(r"^ENV .*PIP_CACHE_DIR|no-cache-dir|PIP_NO_CACHE_DIR", text, re.MULTILINE)


def test_torch_index_has_the_pinned_torch() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    (torch,) = [line for line in _constraints() if line.startswith("torch==")]
    built = {"torch==2.13.0": {"cpu", "cu126", "cu130"}}
    assert set(re.findall(r"download\.pytorch\.org/whl/(\w+)", text)) <= built[torch], (
        "see which indices have this torch, and name them here"
    )


def test_no_password_is_written_down() -> None:
    text = (ROOT / "docker" / "compose.yaml").read_text()
    example = (ROOT / "docker" / "example.env").read_text()
    asked = set(re.findall(r"^(\w+)=$", example, re.MULTILINE))
    assert variables(text) == asked
    # An empty value stops compose before anything starts.
    assert set(re.findall(r"\$\{(\w+):\?", text)) == asked - {"HF_TOKEN"}
    assert not re.search(r"(?i)(password|secret)\w*[=:] *['\"]?[a-z0-9]{8}", text)


def test_the_image_copies_files_that_exist() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    lines = re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)
    copied = [name for line in lines for name in line.split()]
    kept = (ROOT / "docker" / "Dockerfile.dockerignore").read_text()
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}\n" in kept


def test_the_image_installs_tested_versions() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    extras = {e for line in re.findall(r"EXTRAS=(\S+)", text) for e in line.split(",")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [line for extra in extras for line in project["optional-dependencies"][extra]]
    pinned = {Requirement(line).name.lower() for line in _constraints()}
    wanted = {Requirement(line).name.lower() for line in needed}
    assert wanted
    assert wanted <= pinned


def _constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_a_run_is_a_job() -> None:
    job = yaml.safe_load((KUBERNETES / "run.yaml").read_text())
    kubernetes_validate.validate(job, VERSION, strict=True)
    _check_pod(job["spec"]["template"]["spec"])
    (container,) = job["spec"]["template"]["spec"]["containers"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"training.parallel.num_processes={gpus}" in container["args"]


def test_a_run_stops_at_errors_that_come_again() -> None:
    from longred import errors

    rules = yaml.safe_load((KUBERNETES / "run.yaml").read_text())["spec"]["podFailurePolicy"]
    stopped = set(rules["rules"][0]["onExitCodes"]["values"])
    assert stopped == set(errors.BY_EXIT_CODE) - {errors.LockedError.exit_code}


def test_training_over_nodes_is_a_job_for_each_node() -> None:
    jobs = yaml.safe_load((KUBERNETES / "training-nodes.yaml").read_text())
    assert jobs["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    (nodes,) = jobs["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **nodes["template"]}
    kubernetes_validate.validate(job, VERSION, strict=True)
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    name = jobs["metadata"]["name"]
    assert f"--nnodes={spec['parallelism']}" in container["args"]
    assert spec["parallelism"] == spec["completions"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nproc-per-node={gpus}" in container["args"]
    meeting = f"--rdzv-endpoint={name}-{nodes['name']}-0-0.{name}:29500"
    assert meeting in container["args"]
    _check_pod(spec["template"]["spec"])


def test_the_work_pool_makes_a_job() -> None:
    template = json.loads((KUBERNETES / "work-pool.json").read_text())
    properties = template["variables"]["properties"]
    text = json.dumps(template["job_configuration"])
    # A variable that the template does not use has no effect.
    assert set(re.findall(r"\{\{ (\w+) \}\}", text)) == set(properties)
    values = {name: each.get("default") for name, each in properties.items()}
    values["command"] = ["prefect", "flow-run", "execute"]
    values["env"] = [{"name": key, "value": value} for key, value in values["env"].items()]
    job = _filled(template["job_configuration"]["job_manifest"], values)
    pod = job["spec"]["template"]["spec"]
    # Prefect requires these in the pod spec, where the Kubernetes schema does not allow them.
    assert [pod.pop(name) for name in ("completions", "parallelism")] == [1, 1]
    kubernetes_validate.validate(job, VERSION, strict=True)
    _check_pod(pod)


def _filled(value: Any, values: dict[str, Any]) -> Any:
    """Replace each `{{ name }}` by its value; a string that is only that keeps the value's type."""
    if isinstance(value, dict):
        return {key: _filled(each, values) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, values) for each in value]
    if isinstance(value, str):
        whole = re.fullmatch(r"\{\{ (\w+) \}\}", value)
        if whole:
            return values[whole[1]]
        return re.sub(r"\{\{ (\w+) \}\}", lambda found: str(values[found[1]]), value)
    return value


def _check_pod(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    # A run without logins needs no secret.
    for source in container.get("envFrom", []):
        assert source["secretRef"]["optional"] is True
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_logins_of_mlflow_are_read_as_they_were_given(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "docker" / "serve_mlflow.py"))
    given = {
        "MLFLOW_USERS_DATABASE_URI": "postgresql+psycopg2://longred:a%40b@postgres/mlflow_users",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": "50% of = signs ; and # more",
    }
    file = tmp_path / "logins.ini"
    script["write_logins"](file, given)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    # As mlflow.server.auth.config reads it.
    logins = configparser.ConfigParser()
    logins.read(file)
    assert dict(logins["mlflow"]) == {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": given["MLFLOW_USERS_DATABASE_URI"],
        "admin_username": "admin",
        "admin_password": given["MLFLOW_TRACKING_PASSWORD"],
    }
    with pytest.raises(KeyError, match="MLFLOW_TRACKING_PASSWORD"):
        script["write_logins"](file, {k: v for k, v in given.items() if "PASSWORD" not in k})


@pytest.mark.medium
def test_missing_buckets_are_created(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from moto import mock_aws

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "longred")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "longred")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    prepare = runpy.run_path(str(ROOT / "docker" / "prepare.py"))
    with mock_aws():
        prepare["main"](["mlflow"])
        prepare["main"](["mlflow", "longred"])
    assert capsys.readouterr().out.split("\n")[:3] == [
        "mlflow: created",
        "mlflow: existed",
        "longred: created",
    ]


@pytest.mark.parametrize("service", ["prefect", "mlflow"])
def test_health_needs_an_answer(service: str) -> None:
    command = [sys.executable, str(ROOT / "docker" / "health.py"), service, "http://127.0.0.1:9"]
    result = subprocess.run(command, capture_output=True, env={**os.environ}, check=False)
    assert result.returncode != 0


def test_no_password_is_on_a_command_line(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        words = [*service.get("entrypoint", []), *service.get("command", [])]
        assert not variables(" ".join(words))
