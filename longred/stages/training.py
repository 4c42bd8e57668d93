"""The stage that trains a student."""

from collections.abc import Mapping
from pathlib import Path

from longred.config import RunConfig, TrainingConfig
from longred.method.kept import kept_name, kept_place
from longred.progress import Progress
from longred.stages.versions import VERSIONS
from longred.store.artifacts import DIGEST_LENGTH, Artifact, Store, canonical_digest


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
    """Train one student by one method in a child process; a second call goes on where it stopped.

    A method that merges takes the student of another, trained here where it does not exist.

    Raises:
        PausedError: `stop_after` steps are taken, and saved.
        NonFiniteLossError, StorageError, LockedError, MismatchError, Stopped: as the trainer ended.
    """
    recipe = config.recipe(method)
    if recipe.merges:
        made = (base, extended, data, layers)
        student = train_student(
            config,
            recipe.merges,
            *made,
            store=store,
            on_progress=on_progress,
            stop_after=stop_after,
        )
        return _merge(config, method, base, student, store)
    uses_layers = recipe.uses_layers()
    values = {**config.digest_values(), "method": method, "sigma": config.sigma or recipe.sigma}
    # Which methods a run compares, and what a method never reads, cannot change its student.
    unused = recipe.unused_settings() | {"baselines"}
    if config.weights == "fixed":
        unused |= {"weights", "weights_every_steps"}
    if not config.keep_steps:
        unused |= {"keep_steps"}
    settings = {name: value for name, value in values.items() if name not in unused}
    inputs = {"model": base.digest, "extension": extended.digest, "data": data.digest}
    if uses_layers:
        inputs["selection"] = layers.digest

    def make(folder: Path, work: Path) -> None:
        from longred.method.job import TrainingJob
        from longred.training import launch

        store.verify(data)
        chosen = layers.read_json("selection.json")["distill_layers"] if uses_layers else []
        # `rows` carries what the job needs of these.
        plain = {k: v for k, v in settings.items() if k not in ("step_tokens", "short_length")}
        job = TrainingJob(
            **plain,
            teacher_folder=base.path,
            student_folder=extended.path,
            data_folder=data.path,
            data_digest=data.digest,
            distill_layers=tuple(chosen),
            rows=config.rows(method),
            **config.runtime_values(),
        )
        result = launch.run(job, work, on_progress=on_progress, stop_after=stop_after)
        for path in result.iterdir():
            path.rename(folder / path.name)

    return store.build("training", settings, inputs, make, VERSIONS["training"])


def kept_students(config: RunConfig, students: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Return the students on the way that are evaluated too, each as a model of its own.

    Args:
        config: the run; `training.keep_steps` are kept and `evaluation.kept` asks for them.
        students: method → its training. One that is merged of others has none on the way.
    """
    if not config.evaluation.kept:
        return {}
    return {
        kept_name(method, step): _kept(student, step)
        for method, student in students.items()
        if not config.training.recipe(method).merges
        for step in config.training.keep_steps
    }


def _kept(student: Artifact, step: int) -> Artifact:
    identity = canonical_digest({"training": student.digest, "step": step})[:DIGEST_LENGTH]
    return Artifact(student.stage, identity, str(student.folder / kept_place(step)), reused=True)


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
