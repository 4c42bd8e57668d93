"""Losses, gradients and weights of one optimizer step of each method against dense float64."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dense_step import reference_step, reference_update, trains
from test_architectures import CASES, GEMMA, LATENT, SHAPE
from test_loop import relative_error
from tiny_training import ORIGINAL, TARGET, MakeJob
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    PreTrainedConfig,
)

from longred.method.job import TrainingJob
from longred.models.extension import write_extension
from longred.training import optimizer
from longred.training import trainer as trainer_module
from longred.training.trainer import Trainer

METHODS = {
    "attention-only": {"method": "attention-only"},
    "attention-of-longred": {"trained": "attention", "long_distill_weight": 2.0},
    "norms-decay": {"method": "cpt", "decay_norms": True, "weight_decay": 300.0},
    "norms-keep-their-size": {"method": "cpt", "weight_decay": 300.0},
    "pose": {"method": "pose"},
    "pose-across-documents": {"method": "pose", "mask_documents": False, "seed": 5},
    "pose-anywhere": {"method": "pose-anywhere"},
    "attention-distill-by-query-heads": {
        "method": "attention-distill",
        "relation_heads": "query",
    },
    "relations-by-query-heads": {"attention_distill_weight": 2.0, "relation_heads": "query"},
    "recalibrate": {"method": "recalibrate"},
    "recalibrate-distill": {"method": "recalibrate-distill"},
    "recalibrate-distill-by-formula": {"method": "recalibrate-distill", "weighting": "formula"},
    "logit-distill": {"method": "logit-distill"},
    "logit-distill-softened": {
        "method": "logit-distill",
        "logit_distill_temperature": 2.0,
        "logit_distill_weight": 0.7,
    },
    "logits-beside-hidden-states": {"logit_distill_weight": 3.0, "trained": "attention"},
    "attention-of-attention-distill": {"method": "attention-distill", "trained": "attention"},
}


def updated(
    job: TrainingJob, work: Path, monkeypatch
) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    """Take one step; return its metrics, clipped gradients, and all weights after it."""
    trainer = Trainer(job, work)
    grads: dict[str, Tensor] = {}
    update = optimizer.update

    def keep(adamw, step, job):
        found = {n: w.grad for n, w in trainer.student.named_parameters() if w.grad is not None}
        grads.update({name: grad.double() for name, grad in found.items()})
        return update(adamw, step, job)

    monkeypatch.setattr(trainer_module, "update", keep)
    metrics = dict(trainer.train_step())
    weights = {name: w.detach().double() for name, w in trainer.student.named_parameters()}
    return metrics, grads, weights


@pytest.mark.parametrize("micro_batch_tokens", [1, 4096])
@pytest.mark.parametrize("case", METHODS)
def test_one_step_against_float64(
    case: str, micro_batch_tokens: int, make_job: MakeJob, tmp_path: Path, monkeypatch
) -> None:
    job = make_job(micro_batch_tokens=micro_batch_tokens, max_grad_norm=0.5, **METHODS[case])
    losses, expected = reference_step(job)
    metrics, grads, weights = updated(job, tmp_path, monkeypatch)
    for key, loss in losses.items():
        assert metrics[key] == pytest.approx(loss, rel=2e-5), key
    norm = float(sum((grad**2).sum() for grad in expected.values()) ** 0.5)
    assert norm > 0.5, "the gradient of this test must be clipped"
    assert metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-5)
    scaled = {name: grad * 0.5 / norm for name, grad in expected.items()}
    assert all(trains(job, name) for name in grads)
    assert relative_error(grads, scaled) < 2e-5
    before = dict(Trainer(job, tmp_path / "before").student.named_parameters())
    for name, weight in reference_update(job, expected).items():
        if name not in expected:
            assert torch.equal(weights[name], before[name].detach().double()), name
            continue
        moved = (weight - before[name].double()).norm()
        # The first update is the gradient's sign, which float32 cannot tell for the smallest.
        assert (weights[name] - weight).norm() < 0.02 * moved, name


LONG_WINDOW = {**GEMMA, "sliding_window": 4096}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
DENSE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 3}
OTHERS: dict[str, Callable[[], PreTrainedConfig]] = {
    # The window is longer than the rows; the LM head is the input embedding or not.
    "gemma2": lambda: Gemma2Config(**LONG_WINDOW, **CAPS),
    "gemma2-untied": lambda: Gemma2Config(**LONG_WINDOW, **CAPS, tie_word_embeddings=False),
    "deepseek-v3": lambda: DeepseekV3Config(**{**SHAPE, **LATENT, **DENSE}),
    **{name: CASES[name][0] for name in ("granite", "cohere", "smollm3", "glm4", "helium")},
}
"""Soft-capped and scaled logits, latent attention, layers without RoPE, and other rotations."""


@pytest.mark.parametrize("trained", ["all", "attention"])
@pytest.mark.parametrize("case", OTHERS)
def test_other_architectures_against_float64(
    case: str,
    trained: str,
    make_job: MakeJob,
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch,
) -> None:
    original, student = tmp_path / "original", tmp_path / "student"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(OTHERS[case]()).save_pretrained(original)
    for path in tiny_model_folder.glob("tokenizer*"):
        shutil.copy(path, original)
    windows = {"original_window": ORIGINAL, "target_window": TARGET, "rope_theta": 1e7}
    write_extension(original, student, digest="0", method="abf", **windows)
    job = make_job(
        logit_distill_weight=2.0,
        logit_distill_temperature=1.5,
        trained=trained,
        max_grad_norm=1e9,
        teacher_folder=str(original),
        student_folder=str(student),
    )
    losses, expected = reference_step(job)
    metrics, grads, _ = updated(job, tmp_path / "work", monkeypatch)
    for key, loss in losses.items():
        assert metrics[key] == pytest.approx(loss, rel=2e-5), key
    assert relative_error(grads, expected) < 2e-5
