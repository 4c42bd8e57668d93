"""Writes a run's trained student as a model folder of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longred.errors import ConfigError
from longred.export.steps import LAST, find_step
from longred.method.kept import kept_place
from longred.models.load import load_model, save_model
from longred.runs.record import RunRecord
from longred.store.artifacts import Artifact, Store, new_folder

DTYPES = ("bfloat16", "trained")
SHARD_SIZE = "5GB"


@dataclass(frozen=True, slots=True)
class Exported:
    """A written folder and what it was made from.

    Attributes:
        folder: the model folder.
        method: how the student was trained.
        trained: the training's artifact.
        step: of the student, where it was kept on the way; None for the training's result.
        dtype: of the written weights.
        size_bytes: of all its files.
    """

    folder: Path
    method: str
    trained: Artifact
    step: int | None
    dtype: torch.dtype
    size_bytes: int

    @property
    def source(self) -> Path:
        """The folder of the student as it was trained."""
        return _source(self.trained, self.step)


def export_student(
    store: Store,
    run: RunRecord,
    folder: Path,
    *,
    method: str | None = None,
    step: str = LAST,
    by: str = "short_average",
    dtype: str,
) -> Exported:
    """Write a run's student with its tokenizer, generation settings and model card.

    Args:
        store: where the run's artifacts are.
        run: a run whose training is finished.
        folder: a new or empty folder.
        method: which of the run's students; that of `training.method` if None.
        step: `last`, the number of a step that was kept, or `best`.
        by: what the best is chosen by, see `longred.export.steps`.
        dtype: `bfloat16`, or `trained` for the master weights as they were trained.

    Raises:
        ConfigError: the run has no such student, or none at that step, or the folder holds
            something.
        MismatchError: the trained weights are not those that were committed.
        StorageError: the disk is full; nothing is left behind.
    """
    from longred.export.card import model_card

    if dtype not in DTYPES:
        raise ConfigError(f"--dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    name, trained = find_student(run, method)
    kept = find_step(run, name, trained, step=step, by=by)
    source = _source(trained, kept)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not empty; name a new folder")
    store.verify(trained)
    own = load_model(
        source,
        dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32,
        attention="sdpa",
    )
    with new_folder(folder) as temporary:
        save_model(own, source, temporary, shard_size=SHARD_SIZE)
        text = model_card(run, name, trained, own, step=kept)
        (temporary / "README.md").write_text(text, encoding="utf-8")
        for path in temporary.iterdir():
            # safetensors writes for the owner alone; a model is there to be served by others.
            path.chmod(0o644)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Exported(folder, name, trained, kept, own.dtype, size)


def _source(trained: Artifact, step: int | None) -> Path:
    return trained.folder if step is None else trained.folder / kept_place(step)


def find_student(run: RunRecord, method: str | None = None) -> tuple[str, Artifact]:
    """Return a finished student of a run: its method's name and its training's artifact.

    Raises:
        ConfigError: there is none; the message names those that there are.
    """
    finished = {
        stage.name.removeprefix("training/"): stage
        for stage in run.last_attempts().values()
        if stage.stage == "training" and stage.path and stage.digest
    }
    wanted: Any = method or run.config.get("training", {}).get("method")
    if wanted not in finished:
        known = f"it has {', '.join(finished)}" if finished else "it has none yet"
        raise ConfigError(f"run {run.id}: has no trained student of method {wanted}; {known}")
    stage = finished[wanted]
    return wanted, Artifact("training", str(stage.digest), str(stage.path), reused=True)
