"""The stage that trains a student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longred.config import RunConfig, TrainingConfig
from longred.method.kept import kept_name, kept_place
from longred.progress import Progress
from longred.stages.versions import VERSIONS
from longred.store.artifacts import DIGEST_LENGTH, Artifact, Store, canonical_digest

LATER_SETTINGS = {
    "trained": "all",
    "logit_distill_temperature": 1.0,
    "relation_heads": "own",
    "decay_norms": False,
}
"""Settings that came after the first artifacts, with the value under which nothing changed: it
stays out of digests, so that these artifacts are found."""


def settings_of(config: TrainingConfig, method: str) -> dict[str, Any]:
    """Return the settings that a training by a method depends on, for its digest.

    It depends neither on the other methods of the run nor on settings that it never reads.
    """
    recipe = config.recipe(method)
    values = {**config.digest_values(), "method": method, "sigma": config.sigma or recipe.sigma}
    if config.logit_distill_weight is None:
        values["logit_distill_weight"] = recipe.logit_distill_weight
    unused = recipe.unused_settings() | {"baselines"}
    if config.weights == "fixed":
        unused |= {"weights", "weights_every_steps"}
    if not config.keep_steps:
        unused |= {"keep_steps"}
    if recipe.version > 1:
        values["method_version"] = recipe.version
    left_out = {term for term in recipe.terms if term.is_optional and values[str(term.weight)] == 0}
    objectives = {term.objective for term in recipe.terms if term not in left_out}
    if "logit_distill" not in objectives:
        unused |= {"logit_distill_weight", "logit_distill_temperature"}
    if "attention_distill" not in objectives:
        unused |= {"relation_heads"}
    unused |= {name for name, value in LATER_SETTINGS.items() if values[name] == value}
    return {name: value for name, value in values.items() if name not in unused}


def train_student(
    config: TrainingConfig,
    method: str,
    base: Artifact,
    extended: Artifact,
    data: Artifact,
    layers: Artifact,
    *,
    store: Store,
    on_progress: Progress | None = None,
    stop_after: int | None = None,
) -> Artifact:
    """Train one student by one method in a child process, resuming at its last checkpoint.

    A method that merges uses the student of another method, which is trained first if missing.

    Raises:
        PausedError: `stop_after` steps have been taken and saved.
        NonFiniteLossError, StorageError, LockedError, MismatchError, Stopped: how the trainer
            ended.
    """
    recipe = config.recipe(method)
    if recipe.merges:
        student = train_student(
            config,
            recipe.merges,
            base,
            extended,
            data,
            layers,
            store=store,
            on_progress=on_progress,
            stop_after=stop_after,
        )
        return _merge(config, method, base, student, store)
    uses_layers = recipe.uses_layers()
    settings = settings_of(config, method)
    inputs = {"model": base.digest, "extension": extended.digest, "data": data.digest}
    if uses_layers:
        inputs["selection"] = layers.digest

    def make(folder: Path, work: Path) -> None:
        from longred.method.job import TrainingJob
        from longred.training import launch

        store.verify(data)
        selected = layers.read_json("selection.json")["distill_layers"] if uses_layers else []
        job = TrainingJob(
            **{name: value for name, value in settings.items() if name in TrainingJob.fields()},
            teacher_folder=base.path,
            student_folder=extended.path,
            data_folder=data.path,
            data_digest=data.digest,
            distill_layers=tuple(selected),
            rows=config.rows(method),
            **{k: v for k, v in config.runtime_values().items() if k in TrainingJob.fields()},
        )
        result = launch.run(job, work, on_progress=on_progress, stop_after=stop_after)
        for path in result.iterdir():
            path.rename(folder / path.name)

    return store.build("training", settings, inputs, make, VERSIONS["training"])


def kept_students(config: RunConfig, students: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Return the intermediate students to evaluate, each as a model of its own.

    Args:
        config: `training.keep_steps` are saved; `evaluation.kept` enables their evaluation.
        students: method → its training. Merged students have no intermediate ones.
    """
    if not config.evaluation.kept:
        return {}
    kept = {}
    for method, student in students.items():
        if config.training.recipe(method).merges:
            continue
        for step in config.training.keep_steps:
            identity = canonical_digest({"training": student.digest, "step": step})[:DIGEST_LENGTH]
            path = str(student.folder / kept_place(step))
            kept[kept_name(method, step)] = Artifact(student.stage, identity, path, reused=True)
    return kept


def _merge(
    config: TrainingConfig, method: str, base: Artifact, student: Artifact, store: Store
) -> Artifact:
    def make(folder: Path, work: Path) -> None:
        from longred.training.result import merge_student

        store.verify(student)
        merge_student(student.folder, base.folder, folder, weight=config.merge_weight)

    values = {"method": method, "merge_weight": config.merge_weight}
    inputs = {"model": base.digest, "training": student.digest}
    return store.build("training", values, inputs, make, VERSIONS["training"])
