"""A trained student averaged with the original, weight by weight."""

import shutil
from pathlib import Path

import torch

from longred.errors import MismatchError
from longred.models import load as models
from longred.store.artifacts import read_json, storage_errors, write_json
from longred.store.journal import JOURNAL_NAME


def merge_student(student: Path, original: Path, folder: Path, *, weight: float) -> None:
    """Write `weight` times the student's weights plus the rest times the original's.

    The result has the student's RoPE, and the journal of its training.

    Args:
        student: folder of a trained student.
        original: the original model's folder.
        folder: an existing or new folder.
        weight: share of the student, 0 to 1.

    Raises:
        MismatchError: the two are not of one architecture and size.
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
