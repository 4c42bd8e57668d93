"""The doctor finds problems, gives advice, and changes nothing."""

import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.testing import CliRunner

from longred.attention import flash
from longred.cli import app
from longred.cli.flow_host import repository
from longred.runs.record import RunRecord, process_identity
from longred.services import doctor
from longred.services import servers as services
from longred.store.artifacts import Store


def test_a_healthy_machine_has_nothing_failed_and_its_store_is_not_made(tmp_path: Path) -> None:
    store = tmp_path / "store"
    result = CliRunner().invoke(app, ["doctor", "--json", "--store", str(store)])
    findings = {each["name"]: each for each in json.loads(result.stdout)}
    assert result.exit_code == 0, findings
    assert findings["store"]["text"].endswith("(made by the first run)")
    assert "prefect 3." in findings["requirements"]["text"]
    assert findings["attention"]["text"].startswith("sdpa")
    assert {"disk", "Prefect", "MLflow", "runs", "GPU", "tested set"} <= set(findings)
    assert not store.exists()


def test_a_store_that_is_a_file_fails_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    result = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path / "store")])
    assert result.exit_code == 3
    lines = result.stdout.splitlines()
    (number,) = [i for i, line in enumerate(lines) if line.startswith("fail  store")]
    assert "--store, LONGRED_STORE or store.path" in lines[number + 1]


def test_versions_that_differ_from_the_tested_set_are_named(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("# tested\ntorch==0.1.0\nprefect==3.8.8\nabsent==1\n")
    found = {each.name: each for each in doctor.check_versions(tmp_path)}
    assert found["requirements"].level == "ok"
    assert found["tested set"].level == "warn"
    assert "tested with 0.1.0" in found["tested set"].text
    assert "absent" not in found["tested set"].text
    assert "constraints.txt longred" in found["tested set"].advice


def test_without_pip_the_advice_is_uvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "constraints.txt").write_text("torch==0.1.0\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    *_, finding = doctor.check_versions(tmp_path)
    assert f"uv pip install --python {sys.executable} -c {tmp_path}" in finding.advice


def test_a_requirement_that_is_not_met_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "constraints.txt").write_text("# tested\n")
    wanted = ["fastapi>=0.139,<0.140", "no-such-package>=1", "vllm; extra == 'vllm'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    finding, _ = doctor.check_versions(tmp_path)
    assert finding.level == "fail"
    assert finding.advice.endswith(f" install -c {tmp_path}/constraints.txt longred")
    assert "needs <0.140,>=0.139" in finding.text
    assert "no-such-package missing" in finding.text
    assert "vllm" not in finding.text


@pytest.mark.parametrize(("free", "level"), [(0.5, "fail"), (5, "warn"), (500, "ok")])
def test_a_full_disk_is_found_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, level: str
) -> None:
    class Usage(NamedTuple):
        total: int
        used: int
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, int(free * doctor.GIB)))
    finding = doctor.check_disk(tmp_path / "store")
    assert finding.level == level
    assert bool(finding.advice) == (level != "ok")


def test_a_service_that_runs_and_does_not_answer_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setitem(services.DEFAULT_PORTS, "mlflow", taken.getsockname()[1])
        dumb = {
            "name": "prefect",
            "process": process_identity(os.getpid()),
            "url": "http://127.0.0.1:9",
            "port": 9,
        }
        services.folder(tmp_path).mkdir()
        (services.folder(tmp_path) / "services.json").write_text(json.dumps({"prefect": dumb}))
        found: dict[str, Any] = {
            each.name: each for each in doctor.check_services(tmp_path, repository())
        }
    assert found["Prefect"].level == "fail"
    assert "longred down" in found["Prefect"].advice
    assert found["MLflow"].level == "warn"
    assert "--mlflow-port" in found["MLflow"].advice


def test_runs_of_dead_processes_are_pointed_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert [each.level for each in doctor.check_runs(store)] == ["ok"]
    config = {"name": "demo", "tracking": {}, "training": {"method": "cpt"}}
    record = RunRecord("20260101-000000-demo-aaaa", "demo", [], config, "d", process=[1 << 22, 0.0])
    (store.runs / record.id).mkdir(parents=True)
    record.save(store.runs)
    (finding,) = doctor.check_runs(store)
    assert finding.level == "warn"
    assert record.id in finding.text
    assert "longred reap" in finding.advice
    (store.runs / record.id / "run.json").write_bytes(b"\x00\xff")
    (finding,) = doctor.check_runs(store)
    assert finding.level == "warn"
    assert f"{record.id}/run.json" in finding.text


def test_damaged_databases_are_pointed_out(tmp_path: Path) -> None:
    assert [each.text for each in doctor.check_databases(tmp_path)] == ["none yet"]
    (tmp_path / "mlflow.db").write_bytes(b"garbage" * 1000)
    (finding,) = doctor.check_databases(tmp_path)
    assert finding.level == "fail"
    assert f"mv {tmp_path / 'mlflow.db'}" in finding.advice


OWN_CUDNN = {"cudnn_version": "9.19.0", "cudnn_path": "/site/nvidia/cudnn/lib"}
GOOD_KERNELS = {
    "rows": "cuDNN (cudnn_sdpa_sm90)",
    "documents": "FlashAttention (flash_fwd_kernel)",
    "window": "FlashAttention (flash_fwd_kernel)",
    **OWN_CUDNN,
    "cudnn_origin": "torch",
}


@pytest.mark.parametrize(
    ("changes", "wants_cudnn", "levels", "text"),
    [
        ({}, True, ("ok", "ok"), "9.19.0, /site/nvidia/cudnn/lib"),
        ({"rows": "FlashAttention"}, False, ("ok", "ok"), "rows: FlashAttention"),
        ({"rows": "FlashAttention"}, True, ("warn", "ok"), "is faster on this GPU"),
        ({"documents": "math"}, True, ("warn", "ok"), "with FlashAttention"),
        ({"cudnn_origin": "system"}, True, ("ok", "warn"), "LD_LIBRARY_PATH"),
        ({"cudnn_origin": "mixed"}, True, ("ok", "warn"), "LD_LIBRARY_PATH"),
    ],
)
def test_slow_attention_kernels_and_a_hidden_cudnn_are_told(
    changes: dict[str, str], wants_cudnn: bool, levels: tuple[str, str], text: str
) -> None:
    found = list(doctor.judge_kernels({**GOOD_KERNELS, **changes}, wants_cudnn=wants_cudnn))
    assert [each.name for each in found] == ["attention kernels", "cuDNN"]
    assert tuple(each.level for each in found) == levels
    assert any(text in each.text + each.advice for each in found)
    assert all(bool(each.advice) == (each.level == "warn") for each in found)


def test_a_torch_without_cudnn_is_told() -> None:
    report = {kind: "FlashAttention" for kind in ("rows", "documents", "window")}
    *_, cudnn = doctor.judge_kernels(report, wants_cudnn=False)
    assert (cudnn.name, cudnn.level) == ("cuDNN", "warn")


def test_kernels_are_looked_at_on_a_gpu_alone() -> None:
    names = {each.name for each in doctor.check_kernels()}
    assert names == ({"attention kernels", "cuDNN"} if torch.cuda.is_available() else set())


@pytest.mark.parametrize(
    ("capability", "package"),
    [((8, 0), "flash-attn"), ((9, 0), "flash-attn-3"), ((10, 0), None), ((12, 0), "flash-attn")],
)
def test_the_package_that_a_gpu_is_faster_with_is_named(
    capability: tuple[int, int], package: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(flash, "load", missing)
    finding = doctor.check_attention()
    assert finding.text == "sdpa"
    assert finding.level == ("ok" if package is None else "warn")
    assert finding.advice.split(" for ")[0].split(" (")[0] == (
        f"install {package}" if package else ""
    )
