"""What a finished training leaves: a Hugging Face folder with its summary and journal."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from longred.method.job import TrainingJob
from longred.method.kept import kept_place
from longred.models import load as models
from longred.store.artifacts import storage_errors, sync_folder, write_json
from longred.store.journal import JOURNAL_NAME
from longred.training import adapters
from longred.training.environment import environment_of
from longred.training.optimizer import named_weights
from longred.training.sharding import whole
from longred.training.trainer import Trainer


def write_result(trainer: Trainer) -> Path:
    """Write the trained student to `result` in the work folder and return that folder.

    Called by all processes.

    Raises:
        StorageError: the disk is full; the last checkpoint is intact.
    """
    result, temporary = trainer.work / "result", trainer.work / ".tmp-result"
    with trainer.world.together(), storage_errors(result):
        if trainer.world.is_first:
            trainer.journal.close()
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
    write_student(trainer, temporary)
    with trainer.world.together(), storage_errors(result):
        if trainer.world.is_first:
            shutil.copyfile(trainer.journal.path, temporary / JOURNAL_NAME)
            _add_kept(trainer, temporary)
            write_json(temporary / "training.json", _summary(trainer))
            shutil.rmtree(result, ignore_errors=True)
            temporary.rename(result)
    return result


def keep_student(trainer: Trainer) -> None:
    """Write the student of the step that was just done, where it is one to keep.

    The folder gets its name when all of it is on disk, before the next checkpoint is saved: what
    a checkpoint is ahead of is always there. Called by all processes.

    Raises:
        StorageError: the disk is full; the last checkpoint is intact.
    """
    if trainer.step not in trainer.job.keep_steps:
        return
    folder = trainer.work / kept_place(trainer.step)
    temporary = folder.with_name(f".tmp-{folder.name}")
    # A step that is taken again after a crash makes the very same student.
    if trainer.world.gather(folder.is_dir())[0]:
        return
    with trainer.world.together(), storage_errors(folder):
        if trainer.world.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    write_student(trainer, temporary)
    with trainer.world.together(), storage_errors(folder):
        if trainer.world.is_first:
            for path in filter(Path.is_file, temporary.rglob("*")):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            temporary.rename(folder)
            sync_folder(folder.parent)


def _add_kept(trainer: Trainer, result: Path) -> None:
    """Put the kept students into a result, sharing the files' bytes where the disk can."""
    for step in trainer.job.keep_steps:
        place = kept_place(step)
        shutil.copytree(trainer.work / place, result / place, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_student(trainer: Trainer, folder: Path) -> None:
    """Write the student as it is now as a plain model folder, adapters merged into its weights.

    Called by all processes; the first one writes.

    Raises:
        StorageError: the disk is full.
    """
    whole_student = _whole_student(trainer)
    with trainer.world.together():
        if whole_student is not None:
            _write(trainer.job, whole_student, folder)


def _write(job: TrainingJob, model: PreTrainedModel, folder: Path) -> None:
    student, original = Path(job.student_folder), Path(job.teacher_folder)
    if job.recipe.trains_adapters:
        with_adapters, model = model, adapters.merged(model, student, original)
        adapters.save_adapters(with_adapters, folder / adapters.ADAPTERS_NAME)
    models.save_model(model, student, folder)


def _whole_student(trainer: Trainer) -> PreTrainedModel | None:
    """Return the student with all that was trained in the first process, None in the others.

    One weight at a time is gathered; under adapters the others stay on the meta device.
    """
    if trainer.meshes.weights is None:
        return trainer.student
    student = None
    with trainer.world.together():
        if trainer.world.is_first:
            student = _empty_student(trainer.job)
    for name, weight in named_weights(trainer.student).items():
        gathered = whole(weight.detach())
        if student is not None:
            module, _, key = name.rpartition(".")
            setattr(student.get_submodule(module), key, nn.Parameter(gathered.cpu()))
    if student is not None:
        student.tie_weights()
    return student


def _empty_student(job: TrainingJob) -> PreTrainedModel:
    """Return the student with its weights on the meta device, and with its adapters."""
    student = models.build_model(
        Path(job.student_folder), dtype=torch.float32, device=torch.device("cpu"), backend="sdpa"
    )
    if job.recipe.trains_adapters:
        adapters.add_adapters(student, job.lora, dtype=job.dtype)
    return student


def _summary(trainer: Trainer) -> dict[str, Any]:
    tokens = trainer.step * trainer.meter.step_tokens
    return {
        "method": trainer.job.method,
        "rows": dict(trainer.job.rows),
        "num_steps": trainer.step,
        "tokens": tokens,
        "epochs": trainer.epochs,
        "seconds": trainer.seconds,
        "tokens_per_second": tokens / trainer.seconds,
        "final": dict(trainer.metrics),
        "distill_layers": list(trainer.job.distill_layers),
        "loss_weights": {term.metric: weight for term, weight in trainer.balance.weights().items()},
        "num_threads": torch.get_num_threads(),
        "environment": environment_of(trainer.device, trainer.job),
        "job": trainer.job.to_json(),
    }
