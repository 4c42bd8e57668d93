"""The student as it is trained: loaded, given adapters, and made to need little memory and time."""

from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from longred.method.job import TrainingJob
from longred.models import load as models
from longred.models.folder import weight_files
from longred.training import adapters
from longred.training.layers.activations import checkpoint_activations
from longred.training.layers.compiling import compile_layers
from longred.training.layers.fp8 import to_fp8
from longred.training.layers.fused import fuse
from longred.training.layers.masters import hold_no_copies
from longred.training.layers.mlp_tiles import tile_mlps
from longred.training.own_rows import OwnRows
from longred.training.sharding import shard_student


def load_student(
    job: TrainingJob, device: torch.device, mesh: DeviceMesh | None = None
) -> PreTrainedModel:
    """Load the extended model in float32 for training, with the job's savers of memory and time.

    Args:
        job: the training.
        device: where it is trained.
        mesh: the processes that its weights are divided over, each of which reads its own rows; or
            None.

    Raises:
        PreflightError: a package is not installed, or a file is missing or damaged.
        MismatchError: the weights do not fit the configuration.
    """
    folder, original = Path(job.student_folder), Path(job.teacher_folder)
    settings: dict[str, Any] = {
        "dtype": torch.float32,
        "device": device,
        "backend": job.attention_backend,
        "compute_dtype": getattr(torch, job.dtype),
    }
    if mesh is None:
        student = models.load_model(folder, original=original, **settings)
    else:
        student = models.build_model(folder, **settings)
        rows = OwnRows(student, weight_files(folder, original=original))
    if job.recipe.trains_adapters:
        adapters.add_adapters(student, job.lora, dtype=job.dtype)
    if job.fp8:
        to_fp8(student, is_compiled=device.type == "cuda" and not job.compile)
    if job.compile:
        compile_layers(student)
    else:
        if job.fused:
            fuse(student)
        hold_no_copies(student)
    tile_mlps(student, job.mlp_tile_tokens, is_compiled=job.compile)
    checkpoint_activations(student, job.activation_checkpointing)
    if mesh is not None:
        shard_student(student, mesh, getattr(torch, job.dtype))
        rows.read_into(student, device)
    student.train()
    return student
