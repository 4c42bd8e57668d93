"""The teacher's LM head: kept only for logits, in the type that autocast computes in."""

import shutil
from pathlib import Path

import pytest
import torch
from test_architectures import CASES
from tiny_training import ORIGINAL, TARGET, MakeJob
from transformers import AutoModelForCausalLM

from longred.cost.flops import batches
from longred.cost.memory import memory_parts
from longred.cost.shape import shape_of
from longred.models.extension import write_extension
from longred.models.load import load_config, load_model
from longred.training.load import load_teacher
from longred.training.step import head_weight
from longred.training.trainer import Trainer

LENGTHS = {"long": TARGET, "short": ORIGINAL // 2, "original": ORIGINAL}


def held_bytes(model) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_it_is_kept_for_logits_alone(
    dtype: str, weight: float, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(dtype=dtype, logit_distill_weight=weight)
    trainer = Trainer(job, tmp_path)
    with trainer.objectives.teacher() as model:
        teacher = model
    shape = shape_of(load_config(Path(job.student_folder)))
    parts = memory_parts(shape, job, batches(job, LENGTHS), device="cpu")
    assert parts["teacher"] == held_bytes(teacher)
    if not weight:
        assert teacher.lm_head is None
        return
    expected = load_model(Path(job.teacher_folder)).lm_head.weight
    assert teacher.lm_head.weight.dtype == getattr(torch, dtype)
    assert torch.equal(head_weight(teacher), expected.to(getattr(torch, dtype)))


def test_a_tied_head_is_the_embedding(make_job: MakeJob, tiny_model_folder, tmp_path: Path) -> None:
    make_config, method, settings = CASES["qwen2-window"]
    original, student = tmp_path / "original", tmp_path / "student"
    AutoModelForCausalLM.from_config(make_config()).save_pretrained(original)
    for path in tiny_model_folder.glob("tokenizer*"):
        shutil.copy(path, original)
    windows = {"original_window": ORIGINAL, "target_window": TARGET}
    write_extension(original, student, digest="0", method=method, **windows, **settings)
    folders = {"teacher_folder": str(original), "student_folder": str(student)}
    job = make_job(method="logit-distill", dtype="bfloat16", **folders)
    device = torch.device("cpu")
    opened = load_teacher(
        original, dtype="bfloat16", device=device, backend="auto", keeps_head=True
    )
    with opened() as teacher:
        assert teacher.lm_head is None
        assert head_weight(teacher) is teacher.model.embed_tokens.weight
        shape = shape_of(load_config(student))
        parts = memory_parts(shape, job, batches(job, LENGTHS), device="cpu")
        # The plan counts biases as float32.
        assert parts["teacher"] == pytest.approx(held_bytes(teacher), rel=0.01)
    metrics = Trainer(job, tmp_path / "work").train_step()
    assert 0 < metrics["train/short_logit_loss"] < 10
