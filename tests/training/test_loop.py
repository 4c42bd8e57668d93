"""One optimizer step against a dense float64 reference, and how the loop ends."""

import dataclasses
import json
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from dense_step import reference_step
from safetensors.torch import load_file, save_file
from tiny_training import MakeJob, assert_same_run, curve
from torch import Tensor
from transformers import AutoModelForCausalLM

from longred.data.loader import StepLoader
from longred.errors import NonFiniteLossError, Stopped
from longred.method.job import TrainingJob
from longred.training import optimizer
from longred.training import trainer as trainer_module
from longred.training.loop import train
from longred.training.optimizer import named_weights
from longred.training.persistence import checkpoint_of, save
from longred.training.step import micro_batches, term_counts
from longred.training.trainer import Trainer

KEYS = ("train/long_loss", "train/short_distill_loss", "train/short_to_long_loss", "train/loss")


def first_step(job: TrainingJob, work: Path, monkeypatch) -> tuple[dict, dict[str, Tensor]]:
    """Take one step; return its metrics and the gradients passed to the optimizer."""
    trainer = Trainer(job, work)
    grads: dict[str, Tensor] = {}
    update = optimizer.update

    def keep(adamw, step, job):
        weights = named_weights(trainer.student)
        grads.update({n: w.grad.double() for n, w in weights.items() if w.grad is not None})
        return update(adamw, step, job)

    monkeypatch.setattr(trainer_module, "update", keep)
    return dict(trainer.train_step()), grads


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    difference = sum(((found[n] - expected[n]) ** 2).sum() for n in expected)
    return float((difference / sum((g**2).sum() for g in expected.values())).sqrt())


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"mask_documents": False, "activation_checkpointing": "full", "micro_batch_tokens": 1},
        {"method": "longred-u", "weighting": "formula", "micro_batch_tokens": 4096},
        {"method": "mix-cpt"},
        {"method": "cream"},
        {"method": "attention-distill"},
        {"method": "attention-distill", "activation_checkpointing": "selective"},
        {"attention_distill_weight": 2.0, "long_distill_weight": 3.0},
        {
            "attention_distill_weight": 2.0,
            "long_distill_weight": 3.0,
            "mask_documents": False,
            "micro_batch_tokens": 4096,
            "activation_checkpointing": "full",
        },
    ],
)
def test_whole_step_against_float64(values, make_job: MakeJob, tmp_path: Path, monkeypatch):
    job = make_job(max_grad_norm=1e9, **values)
    losses, grads = reference_step(job)
    metrics, found = first_step(job, tmp_path, monkeypatch)
    for key in losses:
        assert metrics[key] == pytest.approx(losses[key], rel=2e-5), key
    found = {name: found[name] for name in grads}
    assert relative_error(found, grads) < 2e-5
    norm = float(sum((g**2).sum() for g in grads.values()).sqrt())
    assert metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.medium
def test_bfloat16_stays_near_float32(make_job: MakeJob, tmp_path: Path, monkeypatch):
    values = {"max_grad_norm": 1e9}
    exact, grads = first_step(make_job(**values), tmp_path / "a", monkeypatch)
    job = make_job(dtype="bfloat16", **values)
    metrics, found = first_step(job, tmp_path / "b", monkeypatch)
    assert metrics["train/long_loss"] == pytest.approx(exact["train/long_loss"], rel=1e-2)
    assert relative_error(found, grads) < 0.1
    trainer = Trainer(job, tmp_path / "c")
    assert {w.dtype for w in trainer.student.parameters()} == {torch.float32}
    with trainer.objectives.teacher() as teacher:
        dtypes = {name: weight.dtype for name, weight in teacher.named_parameters()}
    assert {n for n, dtype in dtypes.items() if dtype == torch.float32} == {
        n for n in dtypes if "norm" in n or "embed" in n or "lm_head" in n
    }


def test_clipping(make_job: MakeJob, tmp_path: Path, monkeypatch):
    metrics, grads = first_step(make_job(max_grad_norm=0.25), tmp_path, monkeypatch)
    assert metrics["train/grad_norm"] > 0.25
    norm = float(sum((g**2).sum() for g in grads.values()).sqrt())
    assert norm == pytest.approx(0.25, rel=1e-4)


def test_micro_batch_split_does_not_matter(make_job: MakeJob, tmp_path: Path, monkeypatch):
    whole, whole_grads = first_step(
        make_job(micro_batch_tokens=10_000), tmp_path / "whole", monkeypatch
    )
    cut, cut_grads = first_step(make_job(micro_batch_tokens=1), tmp_path / "cut", monkeypatch)
    for key in KEYS:
        assert cut[key] == pytest.approx(whole[key], rel=1e-6)
    assert relative_error(cut_grads, whole_grads) < 1e-5


def test_teacher_is_no_part_of_what_is_trained(make_job: MakeJob, tmp_path: Path):
    trainer = Trainer(make_job(), tmp_path)
    with trainer.objectives.teacher() as model:
        teacher = model
    before = {name: weight.clone() for name, weight in teacher.named_parameters()}
    trainer.train_step()
    save(trainer)
    trained = {id(w) for group in trainer.optimizer.param_groups for w in group["params"]}
    for name, weight in teacher.named_parameters():
        assert not weight.requires_grad
        assert weight.grad is None
        assert id(weight) not in trained
        assert torch.equal(weight, before[name])
    saved = load_file(tmp_path / "checkpoints/step-000001/model.safetensors")
    assert saved.keys() == named_weights(trainer.student).keys()


@pytest.mark.medium
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("activation_checkpointing", ["none", "selective", "full"])
def test_an_unchanged_student_has_no_distillation_loss_and_no_gradient(
    dtype, activation_checkpointing, make_job: MakeJob, tmp_path: Path, monkeypatch
):
    values = {"dtype": dtype, "activation_checkpointing": activation_checkpointing}
    job = make_job(attention_distill_weight=1.0, logit_distill_weight=1.0, **values)
    unchanged = dataclasses.replace(job, student_folder=job.teacher_folder)
    trainer = Trainer(unchanged, tmp_path)
    counts = term_counts(job, rows := trainer.loader.next_step())
    totals = {term: float(count.sum()) for term, count in counts.items()}
    for batch in micro_batches(job, rows, counts, totals):
        if batch.bucket != "short":
            continue
        losses = trainer.objectives.losses(batch)
        assert {term.objective: loss.item() for term, loss in losses.items()} == {
            "hidden_distill": 0.0,
            "attention_distill": 0.0,
            "logit_distill": 0.0,
        }
        torch.autograd.backward(sum(losses.values()))
    grads = [w.grad for w in trainer.student.parameters() if w.grad is not None]
    assert grads
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("cpt", {"train/long_loss"}),
        ("cream", {"train/original_loss"}),
        ("pose", {"train/long_loss"}),
        ("recalibrate", {"train/original_loss"}),
        ("mix-cpt", {"train/long_loss", "train/short_loss", "train/original_loss"}),
    ],
)
def test_methods_without_distillation_load_no_teacher(
    method, keys, make_job: MakeJob, tmp_path: Path
):
    job = make_job(method=method, num_steps=2, distill_layers=(), teacher_folder="/nowhere")
    result = train(job, tmp_path)
    always = {"train/loss", "train/grad_norm", "train/learning_rate"}
    assert {key for _, key, _ in curve(result)} == keys | always


@pytest.mark.medium
def test_losses_fall_and_the_result_is_a_model_folder(make_job: MakeJob, tmp_path: Path):
    steps = {}
    job = make_job(num_steps=30, seed=0)
    result = train(job, tmp_path, on_step=lambda step, metrics: steps.update({step: metrics}))
    assert list(steps) == list(range(1, 31))
    for key in KEYS:
        assert steps[30][key] < steps[1][key], key
    summary = json.loads((result / "training.json").read_text())
    assert summary["tokens"] == 30 * (2 * 128 + 5 * 32 + 3 * 64)
    assert summary["final"] == steps[30]
    model = AutoModelForCausalLM.from_pretrained(
        result, trust_remote_code=False, use_safetensors=True
    )
    saved = load_file(tmp_path / "checkpoints/step-000030/model.safetensors")
    for name, weight in model.named_parameters():
        assert torch.equal(weight, saved[name]), name
    assert (result / "tokenizer.json").is_file()


def test_stop_before_the_first_step_saves_nothing(make_job: MakeJob, tmp_path: Path):
    with pytest.raises(Stopped) as stopped:
        train(make_job(), tmp_path, stop_requested=lambda: 2)
    assert stopped.value.exit_code == 130
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.medium
@pytest.mark.parametrize(
    ("values", "num_checks"),
    [
        ({}, 3),
        # The gradient norms of the third step are measured before its passes.
        ({"weights": "auto", "weights_every_steps": 2}, 6),
    ],
)
def test_a_stop_inside_a_step_drops_it_and_changes_no_bit(
    values, num_checks, make_job: MakeJob, tmp_path: Path
):
    job = make_job(num_steps=4, save_every_steps=100, micro_batch_tokens=64, **values)
    calls = {"steps": 0, "checks": 0}

    def finish(step: int, metrics: Mapping[str, float]) -> None:
        calls.update(steps=step, checks=0)

    def stop() -> int | None:
        calls["checks"] += 1
        inside = calls["steps"] == 2 and calls["checks"] > num_checks
        return int(signal.SIGINT) if inside else None

    with pytest.raises(Stopped, match="progress is saved"):
        train(job, tmp_path / "cut", on_step=finish, stop_requested=stop)
    assert calls == {"steps": 2, "checks": num_checks + 1}
    assert [path.name for path in (tmp_path / "cut/checkpoints").iterdir()] == ["step-000002"]
    assert_same_run(train(job, tmp_path / "cut"), train(job, tmp_path / "whole"))


@pytest.mark.medium
def test_a_dropped_step_leaves_the_trainer_as_it_was(make_job: MakeJob, tmp_path: Path):
    trainer = Trainer(make_job(weights="auto", weights_every_steps=1), tmp_path)
    checks = []

    def check(done: int, total: int) -> None:
        torch.rand(3)
        checks.append((done, total))
        if len(checks) == last:
            raise Stopped(signal.SIGTERM)

    before = checkpoint_of(trainer)
    last = 1000
    num_checks = 0
    for last in range(1, 1000):
        checks.clear()
        try:
            trainer.train_step(check)
            break
        except Stopped:
            num_checks = last
        after = checkpoint_of(trainer)
        assert after.state == before.state
        for kind, tensors in before.tensors.items():
            assert after.tensors[kind].keys() == tensors.keys()
            for name, tensor in tensors.items():
                assert torch.equal(after.tensors[kind][name], tensor), name
        assert all(weight.grad is None for weight in trainer.student.parameters())
    assert num_checks > 3
    assert trainer.step == 1


@pytest.fixture
def broken_teacher(make_job: MakeJob, tmp_path: Path) -> Path:
    """Return a teacher with one NaN in its second decoder layer."""
    folder = tmp_path / "broken-teacher"
    shutil.copytree(make_job().teacher_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_nan_names_bucket_blocks_and_layer_and_changes_nothing(
    make_job: MakeJob, broken_teacher: Path, tmp_path: Path
):
    job = make_job(teacher_folder=str(broken_teacher), micro_batch_tokens=64)
    trainer = Trainer(job, tmp_path)
    before = {name: weight.clone() for name, weight in named_weights(trainer.student).items()}
    blocks = StepLoader(Path(job.data_folder), rows=job.rows, seed=job.seed).next_step()["short"]
    with pytest.raises(NonFiniteLossError) as error:
        trainer.train_step()
    message = str(error.value)
    assert (
        f"step 1: the short bucket's hidden_distill loss is nan on blocks {blocks.block_ids[:2]}"
        in message
    )
    assert "the teacher's hidden state 2 (decoder layer 1)" in message
    assert trainer.step == 0
    assert trainer.journal.read() == []
    for name, weight in named_weights(trainer.student).items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("method", ["longred-c", "lora"])
def test_gradient_that_is_not_finite_names_the_last_layer_that_it_reached(
    method, make_job: MakeJob, tmp_path: Path, monkeypatch
):
    trainer = Trainer(make_job(method=method), tmp_path)
    losses = trainer.objectives.losses
    layer = trainer.student.base_model.layers[1]

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden):
            return hidden.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad / 0

    def overflowing(batch):
        # The forward pass is finite; the gradient of one layer's output is not.
        if batch.bucket != "original":
            return losses(batch)
        hook = layer.register_forward_hook(lambda module, args, output: Broken.apply(output))
        try:
            return losses(batch)
        finally:
            hook.remove()

    monkeypatch.setattr(trainer.objectives, "losses", overflowing)
    message = (
        r"the original bucket's short_to_long gradient is not finite, .*"
        r"the last of them model\.layers\.1\..* on blocks \[\d+, \d+\]"
    )
    with pytest.raises(NonFiniteLossError, match=message):
        trainer.train_step()
