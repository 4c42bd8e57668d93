"""The stages that freeze the evaluation samples and evaluate models on them."""

from pathlib import Path
from typing import TYPE_CHECKING

from longred.config import EvaluationConfig
from longred.progress import Progress
from longred.stages.versions import VERSIONS
from longred.store.artifacts import (
    DIGEST_LENGTH,
    Artifact,
    Store,
    canonical_digest,
    folder_digest,
    sha256_file,
)

if TYPE_CHECKING:
    from longred.evaluation.evaluate import OnTask

REINDEXINGS = ("self-extend", "dual-chunk")
"""The keys of `longred.attention.reindexed.SCHEMES`, which needs torch."""

REINDEXING_VERSION = 1
"""Raise it when a reindexing gives other positions for the same windows."""


def freeze_samples(
    config: EvaluationConfig, base: Artifact, data: Artifact, *, store: Store
) -> Artifact:
    """Write every question once, so that all models answer the same ones.

    Raises:
        ConfigError: a suite or task is unknown, or a data file of the suite is missing.
        PreflightError: questions on the hub cannot be fetched.
    """
    from longred.evaluation import ruler, short
    from longred.evaluation.own_task_files import own_digests
    from longred.evaluation.published import READER_VERSION, check_task
    from longred.evaluation.published.files import identities
    from longred.evaluation.ruler.freeze import fingerprints
    from longred.evaluation.suites import SUBSET, check_data_files, data_paths, suite_of
    from longred.models.find import resolve_model

    def make(folder: Path, work: Path) -> None:
        from longred.evaluation.samples import freeze

        freeze(config, base.folder, data.folder, folder, store=store)

    suite = suite_of(config)
    check_data_files(suite)
    version = ruler.generator_version(config.ruler.tasks)
    generators = {"ruler": version, "short": short.GENERATOR_VERSION}
    values = {**config.digest_values(), "part": "samples", "generators": generators}
    # The content of a suite and of the files that it names counts, not where they are.
    values["suite"] = [task.model_dump(mode="json", exclude={"include_path"}) for task in suite]
    values["data_sha256"] = {
        str(file) if SUBSET in path else path: sha256_file(file)
        for task in suite
        for path in task.data_files.values()
        if task.source != "published"
        for file in data_paths(path)
    }
    own = {task.name: digests for task in suite if (digests := own_digests(task))}
    if own:
        values["own_tasks"] = own
    for task, entry in zip(suite, values["suite"], strict=True):
        if task.source == "published":
            check_task(task)
            entry |= {"data_files": identities(task.data_files), "reader": READER_VERSION}
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
    """Evaluate one model on every frozen question; measure its similarity to the original.

    A model by the name of a reindexing attends by it.
    """
    reindexing = name if name in REINDEXINGS else ""
    checkpoint = model.digest
    if reindexing:
        windows = {"original": config.original_window, "target": config.target_window}
        identity = {"model": model.digest, "reindexing": name, "windows": windows}
        checkpoint = canonical_digest({**identity, "version": REINDEXING_VERSION})[:DIGEST_LENGTH]

    def make(folder: Path, work: Path) -> None:
        from longred.evaluation.evaluate import evaluate
        from longred.evaluation.model import EvaluatedModel

        evaluated = EvaluatedModel(
            config=config,
            name=name,
            model=model.folder,
            checkpoint=checkpoint,
            reindexing=reindexing,
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
        "checkpoint": checkpoint,
        "samples": samples.digest,
        "data": data.digest,
    }
    return store.build("evaluation", values, inputs, make, VERSIONS["evaluation"])
