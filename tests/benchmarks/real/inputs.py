"""What `prepare` made, on the machine that measures."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from gpu.child import Check

from longred.cost.shape import ModelShape, shape_of
from longred.data.layout import read_index as read_data_index
from longred.evaluation.tasks import Task, read_index, read_lines, read_tasks
from longred.method.job import TrainingJob
from longred.models.load import load_config
from real.parts import read_manifest

METHODS = ("longred-c", "cpt", "mix-cpt")
MODELS = ("original", "rescaled", *METHODS)


@dataclass(frozen=True)
class Inputs:
    """Prepared inputs, joined.

    Attributes:
        folder: the folder of the parts.
    """

    folder: Path

    @cached_property
    def values(self) -> dict[str, Any]:
        """The manifest."""
        return read_manifest(self.folder)

    @property
    def joined(self) -> Path:
        """Folder of the joined files."""
        return self.folder / "joined"

    @property
    def lengths(self) -> list[int]:
        """Lengths in tokens at which models are measured."""
        return list(self.values["lengths"])

    def place(self, model: str) -> Path:
        """Return the folder of a model; that of a student exists after its training."""
        if model in METHODS:
            return self.training(model) / "result"
        return self.joined / {"original": "model", "rescaled": "extended"}[model]

    def training(self, method: str) -> Path:
        """Return the work folder of a training."""
        return self.folder / "training" / method

    @cached_property
    def shape(self) -> ModelShape:
        """The shape of the model."""
        return shape_of(load_config(self.place("original")))

    def jobs(self) -> dict[str, TrainingJob]:
        """Return the trainings by method, as they were prepared."""
        return {name: TrainingJob.from_json(job) for name, job in self.values["jobs"].items()}

    def job(self, check: Check, method: str, **changes: Any) -> TrainingJob:
        """Return the training of a method on this machine's device."""
        job = TrainingJob.from_json({**self.values["jobs"][method], **changes})
        return replace(
            job,
            teacher_folder=str(self.place("original")),
            student_folder=str(self.place("rescaled")),
            data_folder=str(self.joined / "data"),
            device=check.device_type,
            dtype=dtype_name(check),
        )

    @property
    def row_lengths(self) -> dict[str, int]:
        """Row length of each bucket in tokens."""
        entries = read_data_index(self.joined / "data")["train"]
        return {bucket: int(entry["block_length"]) for bucket, entry in entries.items()}

    def tasks(self, kind: str) -> list[Task]:
        """Return the frozen tasks of a kind, `short` or `ruler`."""
        return [task for task in read_tasks(self.joined / "samples") if task.kind == kind]

    def loss_rows(self, length: int) -> list[dict[str, Any]]:
        """Return the rows of held-out text of a length."""
        samples = self.joined / "samples"
        return read_lines(samples / read_index(samples)["perplexity"][str(length)]["file"])

    def requests(self, name: str) -> list[dict[str, Any]]:
        """Return the requests of a short set of lm-eval."""
        return read_lines(self.joined / "requests" / f"{name}.jsonl")


def dtype_name(check: Check) -> str:
    """Return the compute type: many CPUs have no fast bfloat16."""
    return "float32" if check.tiny else "bfloat16"


def dtype_of(check: Check) -> torch.dtype:
    """Return the compute type."""
    found: torch.dtype = getattr(torch, dtype_name(check))
    return found
