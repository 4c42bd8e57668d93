"""Load the student and the teacher, whole in one process or as the rows of each of several.

A sharded model is built on the meta device, sharded there, then filled one weight at a time from
the model's files: no process ever holds a whole model, neither on its host nor on its device.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from longred.method.job import TrainingJob
from longred.models import load as models
from longred.models.folder import weight_files
from longred.training.adapters import add_adapters, round_linear_layers
from longred.training.frozen import train_attention_alone
from longred.training.layers.activations import checkpoint_activations
from longred.training.layers.compiling import compile_layers
from longred.training.layers.fp8 import to_fp8
from longred.training.layers.fused import fuse
from longred.training.layers.masters import hold_no_copies
from longred.training.layers.mlp_tiles import tile_mlps
from longred.training.sharding import shard_student, shard_teacher
from longred.training.step import Teacher
from longred.training.weight_files import WeightFiles


def load_student(
    job: TrainingJob, device: torch.device, mesh: DeviceMesh | None = None
) -> PreTrainedModel:
    """Load the extended model in float32 and apply the job's memory and speed options.

    Args:
        job: the training.
        device: where the student is trained.
        mesh: processes that share its weights, each reading its own rows; None for one process.

    Raises:
        PreflightError: a package is not installed, or a file is missing or damaged.
        MismatchError: the weights do not fit the configuration.
    """
    dtype = getattr(torch, job.dtype)
    folder, original = Path(job.student_folder), Path(job.teacher_folder)
    settings: dict[str, Any] = {"backend": job.attention_backend, "compute_dtype": dtype}
    student, files = _open(folder, mesh, original, device=device, **settings)
    if job.changes == "adapters":
        add_adapters(student, job.lora, dtype=job.dtype)
    elif job.changes == "attention":
        train_attention_alone(student, dtype=job.dtype)
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
    if mesh is not None and files is not None:
        shard_student(student, mesh, dtype)
        files.fill(student, device)
    student.train()
    return student


def load_teacher(
    folder: Path,
    *,
    dtype: str,
    device: torch.device,
    backend: str,
    is_fused: bool = True,
    keeps_head: bool = False,
    mesh: DeviceMesh | None = None,
) -> Teacher:
    """Load the original model, frozen, to run under the student's autocast.

    Autocast rounds the float32 weights of linear layers to bfloat16 and leaves everything else in
    float32. A teacher stored that way computes the same bits as an unchanged student in little more
    than half the memory. Its LM head is dropped unless logits are needed.

    Args:
        folder: the original model.
        dtype: compute type, `bfloat16` or `float32`.
        device: where the teacher runs.
        backend: attention backend of the student.
        is_fused: whether norms, RoPE and MLPs run as in `longred.training.layers.fused`.
        keeps_head: whether a term compares logits; a head that is tied to the input embedding stays
            in float32 with it.
        mesh: processes that share its weights, each reading its own rows; None for one process.

    Raises:
        PreflightError: a file is missing or damaged.
        MismatchError: the weights do not fit the configuration.
    """
    settings: dict[str, Any] = {"backend": backend, "compute_dtype": getattr(torch, dtype)}
    model, files = _open(folder, mesh, device=device, **settings)
    model.requires_grad_(False)
    if dtype == "bfloat16":
        round_linear_layers(model)
    if is_fused:
        fuse(model)
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    embedding: Any = model.get_input_embeddings()
    if not keeps_head or head.weight is embedding.weight:
        model.lm_head = None
    elif dtype == "bfloat16":
        head.to(torch.bfloat16)
    if mesh is not None and files is not None:
        shard_teacher(model, mesh)
        files.fill(model, device)
    return lambda: contextlib.nullcontext(model)


def teacher_of_adapters(student: PreTrainedModel, original: Path) -> Teacher:
    """Return the teacher inside a student with adapters: adapters off, original RoPE.

    Args:
        student: the model with adapters.
        original: folder of the original model.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base: Any = student.base_model
    rotary = type(base.rotary_emb)(config=models.load_config(original)).to(student.device)
    adapted = [module for module in student.modules() if isinstance(module, BaseTunerLayer)]

    @contextlib.contextmanager
    def opened() -> Iterator[PreTrainedModel]:
        student_rotary, was_training = base.rotary_emb, student.training
        base.rotary_emb = rotary
        student.train(False)
        for module in adapted:
            module.enable_adapters(False)
        try:
            yield student
        finally:
            base.rotary_emb = student_rotary
            student.train(was_training)
            for module in adapted:
                module.enable_adapters(True)

    return opened


def _open(
    folder: Path, mesh: DeviceMesh | None, original: Path | None = None, **settings: Any
) -> tuple[PreTrainedModel, WeightFiles | None]:
    """Load a float32 model; with a mesh, build it on the meta device and return its files too."""
    settings["dtype"] = torch.float32
    if mesh is None:
        return models.load_model(folder, original=original, **settings), None
    model = models.build_model(folder, **settings)
    return model, WeightFiles(model, weight_files(folder, original=original))
