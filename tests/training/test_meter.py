"""Machine metrics of a trainer, and its planned memory and disk against the actual use."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch
from tiny_training import MakeJob

from longred.cost import fit, memory
from longred.cost.flops import batches, step_flops
from longred.cost.machine import memory_of, peak_bytes
from longred.cost.memory import disk_bytes, memory_parts
from longred.cost.shape import shape_of
from longred.errors import PreflightError
from longred.store.journal import Journal
from longred.training import launch
from longred.training.checkpoint import Checkpoints
from longred.training.machine import MACHINE_METRICS
from longred.training.optimizer import optimizer_tensors
from longred.training.persistence import checkpoint_of
from longred.training.trainer import Trainer


def test_a_step_tells_mfu_memory_and_time_left(make_job: MakeJob, tmp_path: Path) -> None:
    trainer = Trainer(make_job(num_steps=5), tmp_path)
    started = time.perf_counter()
    metrics = trainer.train_step()
    seconds = time.perf_counter() - started
    assert metrics.keys() >= MACHINE_METRICS
    lengths = {bucket: file.block_length for bucket, file in trainer.loader.files.items()}
    flops = step_flops(shape_of(trainer.student.config), trainer.job, lengths)
    assert metrics["train/mfu"] * trainer.meter.peak >= flops / seconds
    assert metrics["train/mfu"] == pytest.approx(
        flops / trainer.seconds / trainer.meter.peak, rel=1e-6
    )
    assert metrics["train/eta_seconds"] == pytest.approx(4 * trainer.seconds, rel=1e-6)
    assert 1e8 < metrics["train/peak_memory_bytes"] <= peak_bytes(torch.device("cpu"))
    trainer.journal.flush()
    assert {line["key"] for line in Journal(trainer.journal.path).read()} >= MACHINE_METRICS


def test_progress_is_told_in_words() -> None:
    text = launch._text(
        "longred-c",
        {
            "metrics": {
                "train/long_loss": 2.5,
                "train/short_distill_loss": 0.0213,
                "train/loss": 2.75,
                "train/grad_norm": 1.234,
                "train/learning_rate": 1e-5,
                "train/tokens_per_second": 8123.4,
                "train/mfu": 0.412,
                "train/peak_memory_bytes": 3.0 * 2**30,
                "train/eta_seconds": 7500.0,
            }
        },
    )
    assert text == (
        "8,123 tokens/s, longred-c: loss 2.7500 (long 2.5000, short_distill 0.0213), "
        "gradient 1.23, MFU 0.41, 3.0 GiB, 2 h 5 min left"
    )
    within = launch._text("longred-c", {"step": 3, "batches": [2, 6]})
    assert within == "longred-c: micro-batch 3 of 6 of step 4"


def test_a_training_that_cannot_fit_is_refused_before_it_loads_anything(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(num_steps=2)
    probe = Trainer(job, tmp_path / "probe")
    lengths = {bucket: file.block_length for bucket, file in probe.loader.files.items()}
    shape = shape_of(probe.student.config)
    needed = sum(memory_parts(shape, job, batches(job, lengths), device="cpu").values())

    def start(limit: float, name: str) -> None:
        monkeypatch.setattr(fit, "memory_of", lambda device: limit)
        Trainer(job, tmp_path / name)

    start(needed, "fits")
    start(0.9 * needed, "fits-perhaps")  # within the tolerance of the plan
    with pytest.raises(PreflightError, match=r"training.*longred-c needs about .* MiB") as error:
        start(0.8 * needed, "refused")
    assert error.value.exit_code == 3
    assert not (tmp_path / "refused").exists()


def test_the_refusal_names_settings_that_would_do(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory for smaller micro-batches only, the error names that setting."""
    job = make_job(num_steps=2, micro_batch_tokens=256)
    trainer = Trainer(job, tmp_path)
    lengths = {bucket: file.block_length for bucket, file in trainer.loader.files.items()}
    shape = shape_of(trainer.student.config)
    monkeypatch.setattr(memory, "PROCESS_BYTES", {"cpu": 0})
    saving = dataclasses.replace(job, micro_batch_tokens=128)
    limit = sum(memory_parts(shape, saving, batches(saving, lengths), device="cpu").values())
    monkeypatch.setattr(fit, "memory_of", lambda device: limit)
    with pytest.raises(PreflightError) as error:
        fit.refuse_what_cannot_fit(shape, [(job, lengths)], torch.device("cpu"), num_here=1)
    assert "with training.micro_batch_tokens=128 (" in str(error.value)


@pytest.mark.medium
def test_the_trainers_process_ends_with_the_code_of_the_table(
    make_job: MakeJob, tmp_path: Path
) -> None:
    """A huge micro-batch is refused by the real trainer on the real machine."""
    rows = {"long": 2**24}
    job = make_job(method="cpt", rows=rows, micro_batch_tokens=2**31, num_steps=1)
    with pytest.raises(PreflightError, match="micro_batch_tokens=128"):
        launch.run(job, tmp_path)
    assert memory_of(torch.device("cpu")) > 2**30
    assert json.loads((tmp_path / "job.json").read_text())["rows"] == rows
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_weights_and_optimizer_are_what_a_trainer_holds(
    optimizer: str, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(num_steps=2, optimizer=optimizer)
    trainer = Trainer(job, tmp_path)
    trainer.train_step()
    shape = shape_of(trainer.student.config)
    lengths = {bucket: file.block_length for bucket, file in trainer.loader.files.items()}
    parts = memory_parts(shape, job, batches(job, lengths), device="cpu")
    weights = sum(w.nbytes for w in trainer.student.parameters())
    assert parts["weights"] == parts["gradients"] == weights
    with trainer.objectives.teacher() as teacher:
        assert parts["teacher"] == sum(w.nbytes for w in teacher.parameters())
    state = optimizer_tensors(trainer.optimizer, trainer.student)
    # torchao stores moments of fewer than 4,096 values in float32: the norms of real models.
    large = {n: w.numel() for n, w in trainer.student.named_parameters() if w.numel() >= 4096}
    moments = sum(x.nbytes for key, x in state.items() if key.partition(".")[2] in large)
    planned = parts["optimizer"] * sum(large.values()) / shape.num_parameters
    assert planned == pytest.approx(moments, rel=0.01)


def test_a_checkpoint_takes_the_planned_room(make_job: MakeJob, tmp_path: Path) -> None:
    trainer = Trainer(make_job(num_steps=2), tmp_path)
    trainer.train_step()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(checkpoint_of(trainer))
    written = sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors"))
    shape = shape_of(trainer.student.config)
    assert disk_bytes(shape, trainer.job)["checkpoint"] == pytest.approx(written, rel=0.05)
