"""Write students as Hugging Face folders: the result, those kept on the way, and merged ones."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel

from longred.errors import MismatchError
from longred.method.kept import kept_place
from longred.models import load as models
from longred.store.artifacts import new_folder, read_json, storage_errors, write_json
from longred.store.journal import JOURNAL_NAME
from longred.training import adapters
from longred.training.frozen import completed, train_attention_alone
from longred.training.machine import environment_of
from longred.training.trainer import Trainer


def write_result(trainer: Trainer) -> Path:
    """Write the trained student, its summary and journal to `result` in the work folder.

    Called by all processes.

    Returns:
        The result folder.

    Raises:
        StorageError: the disk is full; the last checkpoint is intact.
    """
    result = trainer.work / "result"
    with _student_folder(trainer, result) as temporary:
        if trainer.world.is_first:
            trainer.journal.close()
            shutil.copyfile(trainer.journal.path, temporary / JOURNAL_NAME)
            for step in trainer.job.keep_steps:
                kept = kept_place(step)
                shutil.copytree(trainer.work / kept, temporary / kept, copy_function=_link)
            write_json(temporary / "training.json", _summary(trainer))
            shutil.rmtree(result, ignore_errors=True)
    return result


def keep_student(trainer: Trainer) -> None:
    """Write the student of the last step if it is one of the job's `keep_steps`.

    It is on disk before the next checkpoint is saved, so a checkpoint never misses an earlier
    student. Called by all processes.

    Raises:
        StorageError: the disk is full; the last checkpoint is intact.
    """
    if trainer.step not in trainer.job.keep_steps:
        return
    folder = trainer.work / kept_place(trainer.step)
    # After a crash the same step produces the same student.
    if not trainer.world.on_first(folder.is_dir):
        with _student_folder(trainer, folder):
            pass


@contextlib.contextmanager
def _student_folder(trainer: Trainer, folder: Path) -> Iterator[Path]:
    """Write the student to a temporary folder; flush and rename it when the block ends."""
    temporary = folder.with_name(f".tmp-{folder.name}")
    with contextlib.ExitStack() as stack:
        with trainer.world.together(), storage_errors(folder):
            if trainer.world.is_first:
                folder.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(new_folder(folder))
        write_student(trainer, temporary)
        with trainer.world.together(), stack:
            yield temporary


def _link(source: str, target: str) -> None:
    """Share the file's bytes if the file system can, else copy them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_student(trainer: Trainer, folder: Path) -> None:
    """Write the current student as a plain float32 model folder, adapters merged into its weights.

    Called by all processes; the first one writes.

    Raises:
        StorageError: the disk is full.
    """
    job = trainer.job
    student, original = Path(job.student_folder), Path(job.teacher_folder)
    with trainer.world.together():
        model = _whole_student(trainer)
        if model is None:
            return
        if job.recipe.trains_adapters:
            adapters.save_adapters(model, folder / adapters.ADAPTERS_NAME)
            model = adapters.merged(model, student, original)
        elif job.changes == "attention":
            model = completed(model, student, original)
        models.save_model(model, student, folder)


def _whole_student(trainer: Trainer) -> PreTrainedModel | None:
    """Gather the trained weights in the first process; return None in the others.

    Frozen weights stay on the meta device.
    """
    if trainer.meshes.weights is None:
        return trainer.student
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights = get_model_state_dict(trainer.student, options=options)
    if not trainer.world.is_first:
        return None
    job = trainer.job
    settings: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
    student = models.build_model(Path(job.student_folder), backend="sdpa", **settings)
    if job.recipe.trains_adapters:
        adapters.add_adapters(student, job.lora, dtype=job.dtype)
    elif job.changes == "attention":
        train_attention_alone(student, dtype=job.dtype)
    student.load_state_dict(weights, strict=False, assign=True)
    student.tie_weights()
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


def merge_student(student: Path, original: Path, folder: Path, *, weight: float) -> None:
    """Average a trained student with the original: `weight` · student + (1 - `weight`) · original.

    The merged model has the student's RoPE and the journal of its training.

    Args:
        student: folder of a trained student.
        original: folder of the original model.
        folder: an existing or new folder.
        weight: share of the student, 0 to 1.

    Raises:
        MismatchError: the models differ in architecture or size.
        StorageError: the disk is full.
    """
    model = models.load_model(student, dtype=torch.float32)
    others = dict(models.load_model(original, dtype=torch.float32).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            other = others.get(name)
            if other is None or other.shape != parameter.shape:
                raise MismatchError(
                    f"{student}: cannot be merged with {original}: {name} is not the same weight"
                )
            parameter.copy_(torch.lerp(other, parameter, weight))
    models.save_model(model, student, folder)
    with storage_errors(folder):
        shutil.copyfile(student / JOURNAL_NAME, folder / JOURNAL_NAME)
    summary = read_json(student / "training.json")
    merged = {"method": "merge", "merged_method": summary["method"], "merge_weight": weight}
    write_json(folder / "training.json", {**summary, **merged})
