"""Trainings of self-attention alone: bits, what is stored, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_architectures import CASES
from test_loop import first_step
from tiny_training import ORIGINAL, TARGET, MakeJob
from transformers import AutoModelForCausalLM

from longred.errors import ConfigError
from longred.models.extension import write_extension
from longred.models.load import load_config, load_model
from longred.training.frozen import completed
from longred.training.loop import train
from longred.training.optimizer import named_weights
from longred.training.persistence import save
from longred.training.trainer import Trainer

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj")
LATENT = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")


@pytest.fixture(params=["qwen2-window", "qwen3", "phi3", "gemma2", "mixtral", "deepseek-v3"])
def folders(request, tiny_model_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return a random model and its extension; biases are not zero."""
    make_config, method, settings = CASES[request.param]
    original, student = tmp_path / "original", tmp_path / "student"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config())
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    model.save_pretrained(original)
    for path in tiny_model_folder.glob("tokenizer*"):
        shutil.copy(path, original)
    windows = {"original_window": ORIGINAL, "target_window": TARGET}
    write_extension(original, student, digest="0", method=method, **windows, **settings)
    return original, student


@pytest.mark.medium
@pytest.mark.parametrize("method", ["attention-only", "longred-c"])
def test_only_the_linear_layers_of_attention_change(
    method: str, folders: tuple[Path, Path], make_job: MakeJob, tmp_path: Path
) -> None:
    original, student = folders
    job = make_job(
        method=method,
        trained="attention",
        teacher_folder=str(original),
        student_folder=str(student),
        dtype="bfloat16",
        num_steps=2,
        keep_steps=[1],
        learning_rate=1e-2,
        warmup_steps=0,
        # Mixtral's experts take whole rows only.
        mlp_tile_tokens=0 if load_config(student).model_type == "mixtral" else 16,
        activation_checkpointing="selective",
    )
    result = train(job, tmp_path / "work")
    before = dict(load_model(student, original=original).named_parameters())
    changed = {name for name in before if name.rpartition(".")[0].endswith(ATTENTION + LATENT)}
    assert 0 < len(changed) < len(before)
    for folder in (result, result / "kept/step-000001"):
        after = dict(load_model(folder).named_parameters())
        assert after.keys() == before.keys()
        for name, weight in after.items():
            assert torch.equal(weight, before[name]) == (name not in changed), name
    saved = load_file(tmp_path / "work/checkpoints/step-000002/model.safetensors")
    assert saved.keys() == changed
    moments = load_file(tmp_path / "work/checkpoints/step-000002/optimizer.safetensors")
    assert {name.partition(".")[2] for name in moments} == changed


@pytest.mark.parametrize("fused", [True, False])
def test_frozen_weights_in_bfloat16_change_no_bit_of_a_step(
    fused: bool, make_job: MakeJob, tmp_path: Path, monkeypatch
) -> None:
    values = {"dtype": "bfloat16", "fused": fused, "max_grad_norm": 1e9, "method": "cpt"}
    whole, expected = first_step(make_job(**values), tmp_path / "all", monkeypatch)
    found, grads = first_step(
        make_job(trained="attention", **values), tmp_path / "some", monkeypatch
    )
    assert found["train/long_loss"].hex() == whole["train/long_loss"].hex()
    assert len(grads) == 3 * 4
    assert all(torch.equal(grad, expected[name]) for name, grad in grads.items())


def test_frozen_weights_have_no_gradient_no_moments_and_the_compute_type(
    make_job: MakeJob, tmp_path: Path
) -> None:
    trainer = Trainer(make_job(method="attention-only", dtype="bfloat16"), tmp_path)
    trainer.train_step()
    save(trainer)
    trained = named_weights(trainer.student)
    assert {name.split(".")[-2] for name in trained} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {id(w) for group in trainer.optimizer.param_groups for w in group["params"]} == {
        id(weight) for weight in trained.values()
    }
    for name, weight in trainer.student.named_parameters():
        is_rounded = ".mlp." in name
        assert weight.dtype == (torch.bfloat16 if is_rounded else torch.float32), name
    whole = completed(
        trainer.student, Path(trainer.job.student_folder), Path(trainer.job.teacher_folder)
    )
    assert {weight.dtype for weight in whole.parameters()} == {torch.float32}


def test_adapters_are_not_part_of_attention(make_job: MakeJob) -> None:
    with pytest.raises(ConfigError, match=r"training\.trained: attention selects weights"):
        make_job(method="lora", trained="attention")
    lora = {"rank": 4, "alpha": 8.0, "targets": ["q_proj"], "objectives": "attention-only"}
    with pytest.raises(ConfigError, match=r"training\.lora\.objectives: attention-only trains"):
        make_job(method="lora", lora=lora)
    assert make_job(method="attention-only").changes == "attention"
    assert make_job(method="lora").changes == "adapters"
    assert make_job().changes == "all"
