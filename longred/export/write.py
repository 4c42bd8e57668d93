"""Writes a trained student of a run as a model folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longred.errors import ConfigError
from longred.method.kept import FOLDER, kept_place
from longred.models.load import load_model, save_model
from longred.runs.record import RunRecord
from longred.store.artifacts import Artifact, Store, new_folder, read_json
from longred.store.journal import JOURNAL_NAME, Journal

DTYPES = {"bfloat16": torch.bfloat16, "trained": torch.float32}
SHARD_SIZE = "5GB"
LAST, BEST = "last", "best"
MEASURES = {
    "short_average": True,
    "retention": True,
    "similarity": True,
    "attention_kl": False,
    "ruler": True,
}
"""Measure that selects the best step → whether higher is better."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A written model folder and its source.

    Attributes:
        folder: the model folder.
        method: training method of the student.
        trained: artifact of the training.
        step: step at which the student was saved; None for the training's result.
        source: folder of the student in the artifact.
        dtype: dtype of the written weights.
        size_bytes: total size of the files.
    """

    folder: Path
    method: str
    trained: Artifact
    step: int | None
    source: Path
    dtype: torch.dtype
    size_bytes: int


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
        store: store that holds the run's artifacts.
        run: a run whose training is finished.
        folder: a new or empty folder.
        method: training method of the student; `training.method` of the run if None.
        step: `last`, the number of a saved step, or `best`.
        by: key of `MEASURES` that selects the best step.
        dtype: `bfloat16`, or `trained` for the master weights.

    Raises:
        ConfigError: the run has no such student or step, or the folder is not empty.
        MismatchError: the trained weights differ from the committed ones.
        StorageError: the disk is full; nothing is left behind.
    """
    from longred.export.card import model_card

    if dtype not in DTYPES:
        raise ConfigError(f"--dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    name, trained = find_student(run, method)
    saved_step = find_step(run, name, trained, step=step, by=by)
    source = trained.folder
    if saved_step is not None:
        source /= kept_place(saved_step)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not empty; name a new folder")
    store.verify(trained)
    model = load_model(source, dtype=DTYPES[dtype], attention="sdpa")
    with new_folder(folder) as temporary:
        save_model(model, source, temporary, shard_size=SHARD_SIZE)
        text = model_card(run, name, trained, model, step=saved_step)
        (temporary / "README.md").write_text(text, encoding="utf-8")
        for path in temporary.iterdir():
            # safetensors makes files readable for the owner only, but servers run as other users.
            path.chmod(0o644)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Exported(folder, name, trained, saved_step, source, model.dtype, size)


def find_student(run: RunRecord, method: str | None = None) -> tuple[str, Artifact]:
    """Return the method and the training artifact of a finished student.

    Raises:
        ConfigError: there is none; the message lists the available ones.
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


def find_step(
    run: RunRecord, method: str, trained: Artifact, *, step: str = LAST, by: str = "short_average"
) -> int | None:
    """Return the step of the wanted student; None for the training's result.

    Args:
        run: the run.
        method: training method of the student.
        trained: artifact of its training.
        step: a number, `last`, or `best`.
        by: for `best`, a key of `MEASURES`, as measured by the run's report.

    Raises:
        ConfigError: no student was saved at the step, or the measure is unknown or missing.
    """
    if step == LAST:
        return None
    last = int(read_json(trained.folder / "training.json")["num_steps"])
    if step == BEST:
        wanted = _best_step(run, method, by)
    elif step.isdigit():
        wanted = int(step)
    else:
        raise ConfigError(f"--step: {step!r} is not a step, `{BEST}` or `{LAST}`")
    if wanted == last:
        return None
    if not (trained.folder / kept_place(wanted)).is_dir():
        names = sorted(path.name for path in (trained.folder / FOLDER).glob("step-*"))
        steps = ", ".join(str(int(name.removeprefix("step-"))) for name in names)
        saved = f"saved are {steps} and the last, {last}" if names else f"only the last, {last}, is"
        raise ConfigError(
            f"--step: the student of {method} at step {wanted} was not saved; {saved}. "
            "Set training.keep_steps to choose the steps that a new training saves"
        )
    return wanted


def _best_step(run: RunRecord, method: str, by: str) -> int:
    if by not in MEASURES:
        raise ConfigError(f"--by: {by!r} is not one of {', '.join(MEASURES)}")
    report = run.last_attempts().get("report")
    values: dict[int, float] = {}
    if report is not None and report.path:
        for line in Journal(Path(report.path) / JOURNAL_NAME).read():
            # Step 0 is the rescaled model before training.
            if line["key"] == f"{method}/by_step/{by}" and line["step"] > 0:
                values[int(line["step"])] = float(line["value"])
    if not values:
        raise ConfigError(
            f"--step {BEST}: run {run.id} has not measured {by} over the steps of {method}; run it "
            "with training.keep_steps and evaluation.kept=true up to the report"
        )
    sign = 1 if MEASURES[by] else -1
    # Ties go to the earlier step.
    return max(values, key=lambda step: (sign * values[step], -step))
