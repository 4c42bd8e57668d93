"""Adapters: the teacher inside the student, gradients, and what is saved."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from dense_step import reference_step
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from test_loop import first_step, relative_error
from tiny_training import MakeJob, assert_same_run, curve

from longred.errors import ConfigError
from longred.method.job import TrainingJob
from longred.models.load import hidden_states, load_model
from longred.training.load import load_teacher
from longred.training.loop import train
from longred.training.optimizer import named_weights
from longred.training.persistence import save
from longred.training.result import write_result
from longred.training.trainer import Trainer

LAYERS = (1, 2, 3)


@pytest.mark.medium
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_adapters_the_student_is_the_teacher_bit_for_bit(
    dtype, make_job: MakeJob, tmp_path: Path
):
    trainer = Trainer(make_job(method="lora", dtype=dtype), tmp_path)
    for _ in range(3):
        trainer.train_step()
    folder = Path(trainer.job.teacher_folder)
    tokens = torch.randint(2, 500, (2, 64))
    device = torch.device("cpu")
    alone = load_teacher(folder, dtype=dtype, device=device, backend="auto")
    states = []
    for teacher in (alone, trainer.objectives.teacher):
        with (
            torch.no_grad(),
            teacher() as model,
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"),
        ):
            states.append(hidden_states(model, tokens, layers=LAYERS))
    assert all(torch.equal(states[0][layer], states[1][layer]) for layer in LAYERS)
    with torch.no_grad(), trainer.objectives._autocast():
        student = hidden_states(trainer.student, tokens, layers=LAYERS)
    assert not any(torch.allclose(student[layer], states[1][layer]) for layer in LAYERS)
    with trainer.objectives.teacher() as model:
        assert model is trainer.student


@pytest.mark.parametrize("values", [{}, {"logit_distill_weight": 2.0}])
def test_gradients_against_float64(values, make_job: MakeJob, tmp_path: Path, monkeypatch):
    """B starts at 0, so A has no gradient, and B's is scale * dW A^T."""
    job = make_job(method="lora", max_grad_norm=1e9, **values)
    losses, weight_grads = reference_step(job)
    metrics, found = first_step(job, tmp_path, monkeypatch)
    for key, loss in losses.items():
        assert metrics[key] == pytest.approx(loss, rel=2e-5), key
    fresh = named_weights(Trainer(job, tmp_path / "again").student)
    expected = {}
    for name, gradient in found.items():
        path, _, kind = name.removesuffix(".default.weight").rpartition(".")
        if kind == "lora_A":
            assert not gradient.any()
            continue
        factor = fresh[name.replace("lora_B", "lora_A")].detach().double()
        expected[name] = 8.0 / 4 * weight_grads[f"{path}.weight"] @ factor.T
    assert len(expected) == 6
    assert relative_error({name: found[name] for name in expected}, expected) < 2e-5


LINEARARD = {
    "rank": 1024,
    "alpha": 2048.0,
    "targets": ["q_proj", "k_proj", "v_proj"],
    "objectives": "attention-distill",
}


@pytest.fixture
def relations_job(make_job: MakeJob) -> TrainingJob:
    """Return LinearARD's recipe on the tiny model, whose layers are smaller than the rank."""
    values = {"rows": {"original": 3}, "relation_heads": "query", "distill_layers": ()}
    return make_job(method="lora", lora=LINEARARD, max_grad_norm=1e9, **values)


def test_adapters_of_linearard_against_float64(
    relations_job: TrainingJob, tmp_path: Path, monkeypatch, caplog
):
    losses, weight_grads = reference_step(relations_job)
    metrics, found = first_step(relations_job, tmp_path, monkeypatch)
    assert metrics["train/attention_distill_loss"] == pytest.approx(losses["train/loss"], rel=2e-5)
    assert "training.lora.rank: 1024 is more than the smaller side of k_proj, 32" in caplog.text
    fresh = named_weights(Trainer(relations_job, tmp_path / "again").student)
    expected = {}
    for name in (name for name in found if "lora_B" in name):
        path = name.removesuffix(".lora_B.default.weight")
        factor = fresh[name.replace("lora_B", "lora_A")].detach().double()
        expected[name] = 2.0 * weight_grads[f"{path}.weight"] @ factor.T
    assert len(expected) == 9
    assert relative_error({name: found[name] for name in expected}, expected) < 2e-5


@pytest.mark.medium
def test_adapters_of_linearard_bring_relations_near_the_teachers(
    relations_job: TrainingJob, tmp_path: Path
):
    changes = {"num_steps": 12, "learning_rate": 1e-3, "dtype": "bfloat16", "seed": 0}
    result = train(dataclasses.replace(relations_job, **changes), tmp_path)
    losses = [float.fromhex(v) for _, k, v in curve(result) if k == "train/attention_distill_loss"]
    assert losses[-1] < 0.9 * losses[0]
    assert (result / "adapters/adapter_model.safetensors").is_file()


@pytest.mark.medium
def test_only_adapters_are_trained_and_saved(make_job: MakeJob, tmp_path: Path):
    trainer = Trainer(make_job(method="lora", dtype="bfloat16"), tmp_path)
    before = {name: weight.clone() for name, weight in trainer.student.named_parameters()}
    trainer.train_step()
    save(trainer)
    saved = load_file(tmp_path / "checkpoints/step-000001/model.safetensors")
    assert saved.keys() == {name for name in before if "lora_" in name}
    for name, weight in trainer.student.named_parameters():
        assert torch.equal(weight, before[name]) == ("lora_B" not in name and "lora_A" not in name)
        if "lora_" in name:
            assert weight.dtype == torch.float32


def test_the_result_is_a_whole_model_and_its_adapters(make_job: MakeJob, tmp_path: Path):
    job = make_job(method="lora", num_steps=4, warmup_steps=0)
    trainer = Trainer(job, tmp_path)
    while trainer.step < 4:
        trainer.train_step()
    result = write_result(trainer)
    tokens = torch.randint(2, 500, (1, 100))
    student = load_model(Path(job.student_folder))
    whole = load_model(result)
    on_top = PeftModel.from_pretrained(
        load_model(Path(job.student_folder)), result / "adapters"
    ).eval()
    with torch.no_grad():
        expected = trainer.student.eval()(tokens).logits
        torch.testing.assert_close(whole(tokens).logits, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(on_top(tokens).logits, expected, atol=1e-6, rtol=1e-6)
        assert not torch.allclose(student(tokens).logits, expected, atol=1e-3)
    adapted = [module for module in trainer.student.modules() if isinstance(module, LoraLayer)]
    assert len(adapted) == 6


@pytest.mark.medium
def test_adapters_in_little_memory(make_job: MakeJob, tmp_path: Path):
    """Combine tiles, checkpointing and 8-bit moments; compare the steps, also after a stop."""
    lora = {"rank": 64, "alpha": 64.0, "objectives": "longred-c"}
    lora["targets"] = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    savers = {"mlp_tile_tokens": 16, "activation_checkpointing": "selective"}
    values = {"method": "lora", "lora": lora, "optimizer": "adamw8bit", "num_steps": 4}
    saving = make_job(**values, **savers, dtype="bfloat16", save_every_steps=2)
    plain = train(make_job(**values, dtype="bfloat16"), tmp_path / "plain")
    result = train(saving, tmp_path / "saving")
    found, expected = ({(s, k): float.fromhex(v) for s, k, v in curve(r)} for r in (result, plain))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=0.02), key
    assert found[4, "train/long_loss"] < found[1, "train/long_loss"]
    saved = load_file(tmp_path / "saving/checkpoints/step-000002/optimizer.safetensors")
    codes = [name for name in saved if name.startswith("exp_avg_codes.")]
    assert len(codes) == 24
    assert all("lora_" in name for name in codes)
    (tmp_path / "again/checkpoints").mkdir(parents=True)
    for name in ("checkpoints/step-000002", "metrics.jsonl"):
        copy = shutil.copytree if name.startswith("checkpoints") else shutil.copyfile
        copy(tmp_path / "saving" / name, tmp_path / "again" / name)
    assert_same_run(train(saving, tmp_path / "again"), result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ["q_proj", "w_pack"]}, r"training\.lora\.targets: w_pack .*q_proj"),
        ({"targets": ["lm_head"]}, r"training\.lora\.targets: lm_head"),
    ],
)
def test_what_the_model_has_no_place_for_is_refused_before_weights_are_read(
    change, message, make_job: MakeJob, tmp_path: Path, monkeypatch
):
    job = make_job(method="lora")
    job = dataclasses.replace(job, lora={**job.lora, **change})
    monkeypatch.setattr("longred.models.load.load_model", None)
    with pytest.raises(ConfigError, match=message):
        train(job, tmp_path)


def test_adapters_on_other_weights_than_the_teachers_are_refused(make_job: MakeJob, tmp_path: Path):
    job = make_job(method="lora")
    shutil.copytree(job.teacher_folder, tmp_path / "merged")
    job = dataclasses.replace(job, student_folder=str(tmp_path / "merged"))
    with pytest.raises(ConfigError, match="adapters need the original model's own weights"):
        train(job, tmp_path / "work")


def test_layers_that_do_not_exist_are_refused_before_weights_are_read(
    make_job: MakeJob, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("longred.models.load.load_model", None)
    with pytest.raises(ConfigError, match=r"training\.distill_layers: \[0, 4\] are not in 1 to 3"):
        train(make_job(distill_layers=(0, 2, 4)), tmp_path)
