"""Load the student and the teacher, whole in one process or as the rows of each of several.

A sharded model is built on the meta device, sharded there, then filled one weight at a time from
the model's files: no process ever holds a whole model, neither on its host nor on its device.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from longred.errors import MismatchError, PreflightError
from longred.method.job import TrainingJob
from longred.models import load as models
from longred.models.folder import weight_files
from longred.training.adapters import add_adapters, round_linear_layers
from longred.training.layers.activations import checkpoint_activations
from longred.training.layers.compiling import compile_layers
from longred.training.layers.fp8 import to_fp8
from longred.training.layers.fused import fuse
from longred.training.layers.masters import hold_no_copies
from longred.training.layers.mlp_tiles import tile_mlps
from longred.training.sharding import local, row_range, shard_student, shard_teacher, sharded_like
from longred.training.step import Teacher
from longred.training.tensor_files import SavedTensors

_OLD_BUFFERS = r"rotary_emb\.inv_freq"
"""Saved by early versions of transformers; RoPE's frequencies follow from the config."""
_ADAPTED = ".base_layer"
"""What peft inserts into the name of a layer with adapters."""


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
    if job.recipe.trains_adapters:
        add_adapters(student, job.lora, dtype=job.dtype)
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
    mesh: DeviceMesh | None = None,
) -> Teacher:
    """Load the original model, frozen, to run under the student's autocast.

    Autocast rounds the float32 weights of linear layers to bfloat16 and leaves everything else in
    float32. A teacher stored that way computes the same bits as an unchanged student in little more
    than half the memory. Its LM head is dropped: only hidden states are needed.

    Args:
        folder: the original model.
        dtype: compute type, `bfloat16` or `float32`.
        device: where the teacher runs.
        backend: attention backend of the student.
        is_fused: whether norms, RoPE and MLPs run as in `longred.training.layers.fused`.
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
    model.lm_head = None
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


class WeightFiles:
    """A model's weight files, checked against the model that they will fill.

    Args:
        model: on the meta device, before adapters are added and before it is sharded.
        files: safetensors files.

    Raises:
        MismatchError: the weights belong to another model.
        PreflightError: a file cannot be read.
    """

    def __init__(self, model: PreTrainedModel, files: Iterable[Path]) -> None:
        try:
            self.saved = SavedTensors(files)
        except MismatchError as error:
            raise PreflightError(f"{error}; fetch the model again") from error
        self._stored_names: dict[str, str] = {}
        named = dict(model.named_parameters(remove_duplicate=False))
        problems = []
        for name, weight in named.items():
            # Files hold tied weights once, under any of their names.
            stored = next((n for n, w in named.items() if w is weight and n in self.saved), None)
            if stored is None:
                problems.append(f"{name} is missing")
                continue
            self._stored_names[name] = stored
            shape, saved_shape = tuple(weight.shape), self.saved.shape(stored)
            if saved_shape != shape:
                problems.append(f"{name} has shape {saved_shape} instead of {shape}")
        ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), _OLD_BUFFERS]
        problems += [
            f"{name} is unknown"
            for name in self.saved
            if name not in named and not any(re.search(pattern, name) for pattern in ignored)
        ]
        if problems:
            raise MismatchError(
                f"{self.saved.paths[0].parent}: the weights do not fit the model's configuration: "
                f"{len(problems)} differences, first {problems[0]}"
            )

    def fill(self, model: nn.Module, device: torch.device) -> None:
        """Read this process's rows of every weight that is still on the meta device.

        Args:
            model: sharded; adapters, which no file holds, already have values.
            device: where the rows are loaded.
        """
        filled: dict[Tensor, nn.Parameter] = {}
        for path, module in model.named_modules():
            for key, weight in list(module.named_parameters(recurse=False)):
                if not weight.is_meta:
                    continue
                if weight not in filled:
                    stored = self._stored_names[f"{path}.{key}".replace(_ADAPTED, "")]
                    # The file's type may differ from the weight's.
                    rows = torch.empty_like(local(weight), device=device)
                    rows.copy_(self.saved.rows(stored, *row_range(weight)))
                    values: Any = sharded_like(weight, rows)
                    filled[weight] = nn.Parameter(values, requires_grad=weight.requires_grad)
                setattr(module, key, filled[weight])


def _open(
    folder: Path, mesh: DeviceMesh | None, original: Path | None = None, **settings: Any
) -> tuple[PreTrainedModel, WeightFiles | None]:
    """Load a float32 model; with a mesh, build it on the meta device and return its files too."""
    settings["dtype"] = torch.float32
    if mesh is None:
        return models.load_model(folder, original=original, **settings), None
    model = models.build_model(folder, **settings)
    return model, WeightFiles(model, weight_files(folder, original=original))
