"""What a finished training leaves: a Hugging Face folder with its summary and journal."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from longred import models
from longred.artifacts import storage_errors, write_json
from longred.tracking import JOURNAL_NAME
from longred.training import adapters
from longred.training.environment import environment_of

if TYPE_CHECKING:
    from longred.training.loop import Trainer


def write_result(trainer: "Trainer") -> Path:
    """Write the trained student to `result` in the work folder and return that folder.

    Raises:
        StorageError: the disk is full; the last checkpoint is intact.
    """
    result, temporary = trainer.work / "result", trainer.work / ".tmp-result"
    trainer.journal.close()
    with storage_errors(result):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write_student(trainer, temporary)
        shutil.copyfile(trainer.journal.path, temporary / JOURNAL_NAME)
        write_json(temporary / "training.json", _summary(trainer))
        shutil.rmtree(result, ignore_errors=True)
        temporary.rename(result)
    return result


def write_student(trainer: "Trainer", folder: Path) -> None:
    """Write the student as it is now as a plain model folder, adapters merged into its weights."""
    job = trainer.job
    student, original = Path(job.student_folder), Path(job.teacher_folder)
    model = trainer.student
    if job.recipe.trains_adapters:
        model = adapters.merged(model, student, original)
        adapters.save_adapters(trainer.student, folder / adapters.ADAPTERS_NAME)
    models.save_model(model, student, folder)


def _summary(trainer: "Trainer") -> dict[str, Any]:
    tokens = trainer.step * trainer.step_tokens
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
        "loss_weights": {term.metric: weight for term, weight in trainer.weights.items()},
        "num_threads": torch.get_num_threads(),
        "environment": environment_of(trainer.device),
        "job": trainer.job.to_json(),
    }
