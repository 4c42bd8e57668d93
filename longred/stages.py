"""One function a stage: its config section and upstream artifacts in, an artifact out.

The only room that knows both the configuration and the store; everything it calls works on plain
values and folders. A Prefect task and a stage run from the command line call the same function.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longred.artifacts import (
    MODEL_FILES,
    TOKENIZER_FILES,
    Artifact,
    Store,
    folder_digest,
    write_json,
)
from longred.config import (
    DataConfig,
    EvaluationConfig,
    ExtensionConfig,
    ModelConfig,
    ProfilingConfig,
    ReportConfig,
    SelectionConfig,
    TrainingConfig,
)
from longred.methods import METHODS
from longred.progress import Progress
from longred.tracking import Journal

VERSIONS = {
    "data": 1,
    "extension": 1,
    "profiling": 1,
    "selection": 1,
    "training": 1,
    "evaluation": 1,
    "report": 1,
}
"""Raised when a stage's code makes something else of the same settings and inputs."""


def find_model(config: ModelConfig) -> Artifact:
    """Return the original model's folder, named by the hash of its files.

    Raises:
        PreflightError: the model is missing, unreadable or cannot be reached.
        ConfigError: its architecture or file format is not supported.
    """
    from longred.models import resolve_model

    folder = resolve_model(config.path, config.revision)
    return Artifact("model", folder_digest(folder, MODEL_FILES), str(folder), reused=True)


def prepare_data(
    config: DataConfig, base: Artifact, *, store: Store, on_progress: Progress | None = None
) -> Artifact:
    """Fill the long, short and original buckets and hold some documents out.

    The sources' own content is an input: text that changed under the same settings is new data.
    """
    from longred.data.buckets import prepare
    from longred.data.sources import fingerprints

    texts = {f"text/{name}": digest for name, digest in fingerprints(config).items()}
    return store.build(
        "data",
        config.digest_values(),
        {"tokenizer": folder_digest(base.folder, TOKENIZER_FILES), **texts},
        lambda folder, work: prepare(config, base.folder, folder, work, on_progress=on_progress),
        VERSIONS["data"],
    )


def extend_model(config: ExtensionConfig, base: Artifact, *, store: Store) -> Artifact:
    """Rescale RoPE: the student's config, with the original weights by reference."""
    from longred.extension import write_extension

    settings = {} if config.rope_theta is None else {"rope_theta": config.rope_theta}

    def make(folder: Path, work: Path) -> None:
        write_extension(
            base.folder,
            folder,
            digest=base.digest,
            method=config.method,
            original_window=config.original_window,
            target_window=config.target_window,
            **settings,
        )

    inputs = {"model": base.digest}
    return store.build("extension", config.digest_values(), inputs, make, VERSIONS["extension"])


def profile_attention(
    config: ProfilingConfig,
    base: Artifact,
    extended: Artifact,
    data: Artifact,
    *,
    store: Store,
    on_progress: Progress | None = None,
) -> Artifact:
    """Measure per layer how far rescaling moved attention and hidden states on held-out text."""

    def make(folder: Path, work: Path) -> None:
        from longred.data.loader import read_rows
        from longred.models import choose_device, load_model
        from longred.profiling.drift import profile_drift

        device = choose_device(config.device)
        drift = profile_drift(
            load_model(base.folder, device=device),
            load_model(extended.folder, device=device, original=base.folder),
            read_rows(data.folder, "short", split="held_out", num_tokens=config.num_tokens),
            batch_rows=config.batch_rows,
            on_progress=on_progress,
        )
        write_json(folder / "drift.json", drift.to_json())
        journal = Journal(folder / "metrics.jsonl")
        for layer, (kl, similarity) in enumerate(
            zip(drift.attention_kl, drift.hidden_similarity, strict=True)
        ):
            name = f"profiling/layer_{layer:02d}"
            journal.append(
                {f"{name}/attention_kl": kl, f"{name}/hidden_similarity": similarity}, step=0
            )
        journal.close()

    inputs = {"model": base.digest, "extension": extended.digest, "data": data.digest}
    return store.build("profiling", config.digest_values(), inputs, make, VERSIONS["profiling"])


def select_layers(config: SelectionConfig, profile: Artifact, *, store: Store) -> Artifact:
    """Choose the layers to distil from the profile, and say why in words."""

    def make(folder: Path, work: Path) -> None:
        from longred import selection

        scores = profile.read_json("drift.json")["attention_kl"]
        layers = selection.select_layers(
            scores,
            strategy=config.strategy,
            num_distill_layers=config.num_distill_layers,
            layers=config.layers,
        )
        reasons = [
            {"distill_layer": layer, "decoder_layer": layer - 1, "text": text}
            for layer, text in zip(layers, selection.explain(scores, layers), strict=True)
        ]
        chosen = {
            "strategy": config.strategy,
            "layer_scores": scores,
            "distill_layers": layers,
            "reasons": reasons,
        }
        write_json(folder / "selection.json", chosen)

    inputs = {"profiling": profile.digest}
    return store.build("selection", config.digest_values(), inputs, make, VERSIONS["selection"])


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
) -> Artifact:
    """Train one student by one method in a child process; a second call goes on where it stopped.

    Raises:
        NonFiniteLossError, StorageError, LockedError, MismatchError, Stopped: as the trainer ended.
    """
    uses_layers = METHODS[method].uses_layers()
    distill_layers = layers.read_json("selection.json")["distill_layers"] if uses_layers else []
    values = {**config.digest_values(), "method": method}
    # Which methods a run compares, and what a method never reads, cannot change its student.
    unused = METHODS[method].unused_settings() | {"baselines"}
    settings = {name: value for name, value in values.items() if name not in unused}
    inputs = {"model": base.digest, "extension": extended.digest, "data": data.digest}
    if uses_layers:
        inputs["selection"] = layers.digest

    def make(folder: Path, work: Path) -> None:
        from longred.training import launch
        from longred.training.job import TrainingJob

        store.verify(data)
        # `rows` carries what the job needs of these.
        plain = {k: v for k, v in settings.items() if k not in ("step_tokens", "short_length")}
        job = TrainingJob(
            **plain,
            teacher_folder=base.path,
            student_folder=extended.path,
            data_folder=data.path,
            data_digest=data.digest,
            distill_layers=tuple(distill_layers),
            rows=config.rows(method),
            save_every_steps=config.save_every_steps,
            num_checkpoints=config.num_checkpoints,
            num_threads=config.num_threads,
            device=config.device,
        )
        result = launch.run(job, work, on_progress=on_progress)
        for path in result.iterdir():
            path.rename(folder / path.name)

    return store.build("training", settings, inputs, make, VERSIONS["training"])


def freeze_samples(
    config: EvaluationConfig, base: Artifact, data: Artifact, *, store: Store
) -> Artifact:
    """Write every question once, so that all models answer the same ones."""
    from longred.evaluation import ruler, short

    def make(folder: Path, work: Path) -> None:
        from longred.evaluation.samples import freeze

        freeze(config, base.folder, data.folder, folder)

    generators = {"ruler": ruler.GENERATOR_VERSION, "short": short.GENERATOR_VERSION}
    values = {**config.digest_values(), "part": "samples", "generators": generators}
    del values["references"], values["similarity_tokens"]
    inputs = {"model": base.digest, "data": data.digest}
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


def write_report(
    config: ReportConfig,
    recipe: Mapping[str, Any],
    data: Artifact,
    extended: Artifact,
    profile: Artifact,
    layers: Artifact,
    students: Mapping[str, Artifact],
    samples: Artifact,
    scores: Mapping[str, Artifact],
    *,
    store: Store,
) -> Artifact:
    """Compare the models: tables, plots and one HTML page."""

    def make(folder: Path, work: Path) -> None:
        from longred.report.write import write

        write(
            config,
            folder=folder,
            recipe=dict(recipe),
            data=data.folder,
            profile=profile.folder,
            selection=layers.folder,
            students={name: artifact.folder for name, artifact in students.items()},
            samples=samples.folder,
            scores={name: artifact.folder for name, artifact in scores.items()},
        )

    inputs = {
        "data": data.digest,
        "extension": extended.digest,
        "profiling": profile.digest,
        "selection": layers.digest,
        "evaluation/samples": samples.digest,
        **{f"training/{name}": artifact.digest for name, artifact in students.items()},
        **{f"evaluation/{name}": artifact.digest for name, artifact in scores.items()},
    }
    values = {**config.digest_values(), "recipe": dict(recipe)}
    return store.build("report", values, inputs, make, VERSIONS["report"])
