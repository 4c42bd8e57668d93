"""The stages that freeze questions and ask them."""

from pathlib import Path

from longred.artifacts import Artifact, Store
from longred.config import EvaluationConfig
from longred.progress import Progress
from longred.stages.versions import VERSIONS


def freeze_samples(
    config: EvaluationConfig, base: Artifact, data: Artifact, *, store: Store
) -> Artifact:
    """Write every question once, so that all models answer the same ones."""
    from longred.evaluation import ruler, short
    from longred.evaluation.ruler.freeze import fingerprints

    def make(folder: Path, work: Path) -> None:
        from longred.evaluation.samples import freeze

        freeze(config, base.folder, data.folder, folder)

    generators = {"ruler": ruler.GENERATOR_VERSION, "short": short.GENERATOR_VERSION}
    values = {**config.digest_values(), "part": "samples", "generators": generators}
    del values["references"], values["similarity_tokens"]
    inputs = {"model": base.digest, "data": data.digest, **fingerprints(config.ruler)}
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
) -> Artifact:
    """Ask one model every frozen question and measure its similarity to the original."""

    def make(folder: Path, work: Path) -> None:
        from longred.evaluation.evaluate import evaluate

        evaluate(
            config,
            name,
            model.folder,
            base.folder,
            samples.folder,
            data.folder,
            folder,
            work,
            on_progress=on_progress,
        )

    values = {**config.digest_values(), "part": "scores", "name": name}
    del values["references"]
    inputs = {
        "model": base.digest,
        "checkpoint": model.digest,
        "samples": samples.digest,
        "data": data.digest,
    }
    return store.build("evaluation", values, inputs, make, VERSIONS["evaluation"])
