"""The stages that freeze the evaluation samples and evaluate models on them."""

from pathlib import Path
from typing import TYPE_CHECKING

from longred.config import EvaluationConfig
from longred.progress import Progress
from longred.stages.versions import VERSIONS
from longred.store.artifacts import Artifact, Store, folder_digest, sha256_file

if TYPE_CHECKING:
    from longred.evaluation.evaluate import OnTask


def freeze_samples(
    config: EvaluationConfig, base: Artifact, data: Artifact, *, store: Store
) -> Artifact:
    """Write every question once, so that all models answer the same ones.

    Raises:
        ConfigError: a suite or task is unknown, or a data file of the suite is missing.
        PreflightError: questions on the hub cannot be fetched.
    """
    from longred.evaluation import ruler, short
    from longred.evaluation.ruler.freeze import fingerprints
    from longred.evaluation.suites import check_data_files, suite_of
    from longred.models.find import resolve_model

    def make(folder: Path, work: Path) -> None:
        from longred.evaluation.samples import freeze

        freeze(config, base.folder, data.folder, folder, store=store)

    suite = suite_of(config)
    check_data_files(suite)
    version = ruler.generator_version(config.ruler.tasks)
    generators = {"ruler": version, "short": short.GENERATOR_VERSION}
    values = {**config.digest_values(), "part": "samples", "generators": generators}
    # The content of a suite and of its data files counts, not their paths.
    values["suite"] = [task.model_dump(mode="json") for task in suite]
    values["data_sha256"] = {
        path: sha256_file(Path(path).expanduser())
        for task in suite
        for path in task.data_files.values()
        if Path(path).expanduser().is_file()
    }
    for key in ("references", "kept", "similarity_tokens", "dtype", "chat_template"):
        del values[key]
    inputs = {"model": base.digest, "data": data.digest, **fingerprints(config.ruler)}
    if config.perplexity.judge:
        judge = resolve_model(
            config.perplexity.judge,
            config.perplexity.judge_revision,
            key="evaluation.perplexity.judge",
        )
        inputs["perplexity/judge"] = folder_digest(judge)
    return store.build("evaluation", values, inputs, make, VERSIONS["evaluation"])


def evaluate_model(
    config: EvaluationConfig,
    name: str,
    model: Artifact,
    base: Artifact,
    samples: Artifact,
    data: Artifact,
    *,
    store: Store,
    on_progress: Progress | None = None,
    on_unit: "OnTask | None" = None,
) -> Artifact:
    """Evaluate one model on every frozen question; measure its similarity to the original."""

    def make(folder: Path, work: Path) -> None:
        from longred.evaluation.evaluate import evaluate
        from longred.evaluation.model import EvaluatedModel

        evaluated = EvaluatedModel(
            config=config,
            name=name,
            model=model.folder,
            checkpoint=model.digest,
            original=base.folder,
            original_digest=base.digest,
            samples=samples.folder,
            data=data.folder,
        )
        evaluate(evaluated, folder, work, store=store, on_progress=on_progress, on_task=on_unit)

    values = {**config.digest_values(), "part": "scores", "name": name}
    del values["references"], values["kept"]
    inputs = {
        "model": base.digest,
        "checkpoint": model.digest,
        "samples": samples.digest,
        "data": data.digest,
    }
    return store.build("evaluation", values, inputs, make, VERSIONS["evaluation"])
