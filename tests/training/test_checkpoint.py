"""An interrupted and resumed training gives the same bits as an uninterrupted one."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from tiny_training import MakeJob, assert_same_run, run, write_blocks

from longred.errors import MismatchError, PreflightError
from longred.training import checkpoint
from longred.training.checkpoint import Checkpoint, Checkpoints
from longred.training.loop import train
from longred.training.persistence import restore, save
from longred.training.trainer import Trainer

LATER = {"trained", "decay_norms", "relation_heads", "logit_distill_weight"}
"""Settings that checkpoints of earlier versions lack."""


def saved_steps(work: Path) -> list[str]:
    return sorted(path.name for path in (work / "checkpoints").iterdir())


@pytest.mark.medium
@pytest.mark.parametrize(
    ("fault", "exit_code", "left"),
    [
        ("kill@7", -9, ["step-000005"]),
        ("kill-in-save@10", -9, [".tmp-step-000010", "step-000005"]),
        ("kill-before-rename@10", -9, [".tmp-step-000010", "step-000005"]),
        ("terminate@7", 143, ["step-000005", "step-000007"]),
        ("terminate-in-step@8", 143, ["step-000005", "step-000007"]),
        ("terminate-in-save@10", 143, ["step-000005", "step-000010"]),
        ("disk-full@7", 4, [".tmp-step-000010", "step-000005"]),
        ("nan@8", 5, ["step-000005"]),
    ],
)
def test_disturbed_run_is_finished_bit_identically(
    fault, exit_code, left, make_job: MakeJob, uninterrupted: Path, processes, tmp_path: Path
):
    assert run(processes, make_job(), tmp_path, fault=fault) == exit_code
    assert saved_steps(tmp_path) == left
    assert_same_run(train(make_job(), tmp_path), uninterrupted)
    assert saved_steps(tmp_path) == ["step-000010", "step-000012"]


@pytest.mark.medium
@pytest.mark.parametrize(
    "values",
    [
        {"method": "lora", "activation_checkpointing": "full"},
        {"method": "attention-distill", "dtype": "bfloat16"},
        {"method": "attention-only", "dtype": "bfloat16"},
        {"method": "logit-distill", "dtype": "bfloat16"},
        {"method": "cream", "schedule": "cosine", "optimizer_offload": True},
        {"method": "pose"},
        {"method": "recalibrate-distill", "decay_norms": True},
        {"method": "cpt", "optimizer": "adamw8bit"},
    ],
)
def test_every_kind_of_method_is_resumed_bit_identically(
    values, make_job: MakeJob, processes, tmp_path: Path
):
    job = make_job(num_steps=5, save_every_steps=2, **values)
    whole = train(job, tmp_path / "whole")
    assert run(processes, job, tmp_path / "cut", fault="kill@3") == -9
    assert saved_steps(tmp_path / "cut") == ["step-000002"]
    assert_same_run(train(job, tmp_path / "cut"), whole)


def test_slow_steps_are_saved_after_some_time(
    make_job: MakeJob, uninterrupted: Path, processes, tmp_path: Path
):
    job = make_job(save_every_steps=1000, save_every_seconds=1e-3)
    assert run(processes, job, tmp_path, fault="kill@3") == -9
    assert saved_steps(tmp_path)[-1] == "step-000002"
    assert_same_run(train(job, tmp_path), uninterrupted)
    rare = make_job(num_steps=2, save_every_steps=1000)
    train(rare, tmp_path / "rare")
    assert saved_steps(tmp_path / "rare") == ["step-000002"]


@pytest.mark.medium
def test_resume_of_a_resume(make_job: MakeJob, uninterrupted: Path, processes, tmp_path: Path):
    for fault in ("kill@6", "kill@9", "terminate@11"):
        assert run(processes, make_job(), tmp_path, fault=fault) in (-9, 143)
    assert_same_run(train(make_job(), tmp_path), uninterrupted)


@pytest.mark.medium
def test_resume_after_the_last_step_only_writes_the_result(
    make_job: MakeJob, uninterrupted: Path, tmp_path: Path
):
    first = train(make_job(), tmp_path)
    summary = json.loads((first / "training.json").read_text())
    steps = []
    again = train(make_job(), tmp_path, on_step=lambda step, metrics: steps.append(step))
    assert steps == []
    assert_same_run(again, uninterrupted)
    assert json.loads((again / "training.json").read_text())["final"] == summary["final"]


def test_a_checkpoint_from_before_a_setting_existed_has_its_default(
    make_job: MakeJob, tmp_path: Path
):
    job = make_job(method="logit-distill", logit_distill_weight=1.0)
    trainer = Trainer(job, tmp_path)
    trainer.train_step()
    save(trainer)
    saved = trainer.checkpoints.newest()
    then = {name: saved.state["job"][name] for name in saved.state["job"].keys() - LATER}
    earlier = saved._replace(state={**saved.state, "job": then})
    again = Trainer(job, tmp_path / "again")
    restore(again, earlier)
    assert again.step == 1
    for change in ({"decay_norms": True}, {"trained": "attention"}, {"logit_distill_weight": 2.0}):
        other = Trainer(dataclasses.replace(job, **change), tmp_path / "other")
        with pytest.raises(MismatchError, match=f"written with another {min(change)}"):
            restore(other, earlier)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.medium
def test_damaged_newest_checkpoint_is_set_aside(
    make_job: MakeJob, uninterrupted: Path, processes, tmp_path: Path, caplog
):
    assert run(processes, make_job(), tmp_path, fault="kill@11") == -9
    flip_a_bit(tmp_path / "checkpoints/step-000010/model.safetensors")
    assert_same_run(train(make_job(), tmp_path), uninterrupted)
    assert saved_steps(tmp_path) == ["corrupt-step-000010", "step-000010", "step-000012"]
    assert "step-000010 is damaged (the bytes of model.safetensors differ" in caplog.text


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (
            lambda f: flip_a_bit(f / "optimizer.safetensors"),
            "bytes of optimizer.safetensors differ",
        ),
        (lambda f: os.truncate(f / "model.safetensors", 9), "model.safetensors has 9 bytes"),
        (lambda f: (f / "MANIFEST.json").unlink(), "MANIFEST.json is missing"),
        (
            lambda f: (f / "MANIFEST.json").write_text('{"files": [1'),
            "MANIFEST.json cannot be read",
        ),
        (lambda f: (f / "MANIFEST.json").write_text("[]"), "MANIFEST.json cannot be read"),
        (lambda f: (f / "state.json").unlink(), "state.json is missing"),
    ],
)
def test_every_damage_is_seen_and_the_one_before_is_used(damage, problem, tmp_path: Path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        tensors = {name: {"w": torch.full((2, 3), step)} for name in ("model", "optimizer")}
        checkpoints.save(Checkpoint(step, tensors, {"note": step}))
    damage(tmp_path / "step-000002")
    found = checkpoints.newest()
    assert (found.step, found.state) == (1, {"note": 1})
    assert torch.equal(found.tensors["model"]["w"], torch.full((2, 3), 1))
    assert problem in caplog.text
    checkpoints.save(Checkpoint(2, found.tensors, {"note": 2}))
    assert checkpoints.newest().step == 2


def test_a_second_damage_of_the_same_step_keeps_the_first(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 2):
        checkpoints.save(Checkpoint(step, {"model": {"w": torch.ones(1)}}, {}))
        if step == 2:
            flip_a_bit(tmp_path / "step-000002/model.safetensors")
            assert checkpoints.newest().step == 1
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["corrupt-step-000002", "corrupt-step-000002.2", "step-000001"]


def test_oldest_checkpoints_are_removed(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 5, 10, 1_000_000):
        checkpoints.save(Checkpoint(step, {"model": {"w": torch.ones(1)}}, {}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-1000000"]
    assert checkpoints.newest().step == 1_000_000


def test_nothing_starts_over_silently(make_job: MakeJob, tmp_path: Path):
    job = make_job(num_steps=2, save_every_steps=1)
    train(job, tmp_path)
    for folder in (tmp_path / "checkpoints").glob("step-*"):
        (folder / "MANIFEST.json").unlink()
    for _ in range(2):
        with pytest.raises(MismatchError, match="every checkpoint is damaged"):
            train(job, tmp_path)


def test_other_data_or_settings_are_refused(make_job: MakeJob, tmp_path: Path):
    train(make_job(num_steps=1), tmp_path)
    with pytest.raises(MismatchError, match="data_digest: 'd0', now 'd1'"):
        train(make_job(num_steps=1, data_digest="d1"), tmp_path)
    with pytest.raises(MismatchError, match="learning_rate"):
        train(make_job(num_steps=1, learning_rate=1.0), tmp_path)


def test_runtime_settings_may_change_and_threads_are_told(
    make_job: MakeJob, tmp_path: Path, caplog
):
    train(make_job(num_steps=1), tmp_path)
    state = next(iter((tmp_path / "checkpoints").glob("step-*"))) / "state.json"
    values = json.loads(state.read_text())
    values["environment"]["num_threads"] = 7
    state.write_text(json.dumps(values))
    manifest = state.with_name("MANIFEST.json")
    files = json.loads(manifest.read_text())
    entry = {"sha256": checkpoint.sha256_file(state), "size_bytes": state.stat().st_size}
    manifest.write_text(json.dumps({**files, "files": {**files["files"], "state.json": entry}}))
    train(make_job(num_steps=1, save_every_steps=9, num_checkpoints=1), tmp_path)
    assert "num_threads 1 where the checkpoint had 7" in caplog.text


def test_other_block_counts_are_refused(make_job: MakeJob, tmp_path: Path):
    write_blocks(tmp_path / "data")
    train(make_job(num_steps=1, data_folder=str(tmp_path / "data")), tmp_path / "work")
    index = tmp_path / "data/index.json"
    values = json.loads(index.read_text())
    values["train"]["short"]["num_blocks"] = 10
    content = (tmp_path / "data/tokens/short.bin").read_bytes()
    (tmp_path / "data/tokens/short.bin").write_bytes(content[: len(content) // 2])
    index.write_text(json.dumps(values))
    with pytest.raises(MismatchError):
        train(make_job(num_steps=1, data_folder=str(tmp_path / "data")), tmp_path / "work")


@pytest.mark.medium
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_room_is_asked_for_what_is_written(
    optimizer: str, make_job: MakeJob, tmp_path: Path, monkeypatch
):
    """The required space is that of the checkpoints and results, with a small margin."""
    values = {"num_steps": 2, "save_every_steps": 1, "num_checkpoints": 1, "keep_steps": [1]}
    job = make_job(optimizer=optimizer, **values)
    result = train(job, tmp_path / "first")
    one = sum(p.stat().st_size for p in (tmp_path / "first/checkpoints/step-000002").iterdir())
    needed = 2 * one + sum(p.stat().st_size for p in result.rglob("model.safetensors"))
    usage = checkpoint.shutil.disk_usage(tmp_path)
    for free, name in ((needed, "refused"), (needed + 4 * 2**20, "enough")):
        own = usage._replace(free=free)
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path, own=own: own)
        if name == "enough":
            train(job, tmp_path / name)
            continue
        with pytest.raises(PreflightError, match="free some space"):
            train(job, tmp_path / name)


def test_full_disk_is_told_before_the_first_step(make_job: MakeJob, tmp_path: Path, monkeypatch):
    usage = checkpoint.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    steps = []
    with pytest.raises(PreflightError, match="free some space"):
        train(make_job(), tmp_path, on_step=lambda step, metrics: steps.append(step))
    assert steps == []
