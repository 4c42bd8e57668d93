"""The student as it is trained: loaded, given adapters, and made to need little memory and time."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from longred import models
from longred.activations import checkpoint_activations
from longred.compiling import check_compiler, compile_layers
from longred.fp8 import check_fp8, to_fp8
from longred.masters import hold_no_copies
from longred.mlp_tiles import tile_mlps
from longred.training import adapters
from longred.training.job import TrainingJob


def load_student(job: TrainingJob, device: torch.device) -> PreTrainedModel:
    """Load the extended model in float32 for training, with the job's savers of memory and time.

    Raises:
        PreflightError: what they need is not installed.
    """
    if job.fp8:
        check_fp8(device)
    if job.compile:
        check_compiler(device)
    student = models.load_model(
        Path(job.student_folder),
        dtype=torch.float32,
        device=device,
        original=Path(job.teacher_folder),
        backend=job.attention_backend,
        compute_dtype=getattr(torch, job.dtype),
    )
    if job.recipe.trains_adapters:
        adapters.add_adapters(student, job.lora, dtype=job.dtype)
    if job.fp8:
        to_fp8(student)
    if job.compile:
        compile_layers(student)
    else:
        hold_no_copies(student)
    tile_mlps(student, job.mlp_tile_tokens, is_compiled=job.compile)
    checkpoint_activations(student, job.activation_checkpointing)
    student.train()
    return student
