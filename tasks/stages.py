"""One task a stage; each calls the stage of the same name and nothing else.

`at` is added to a stage's name where a run makes it more than once.
"""

from typing import Any

from prefect.client.schemas.objects import State

from longred import stages
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
from longred.store.artifacts import Artifact
from tasks.shards import map_groups
from tasks.stage import make, stage_task

Made = State[Artifact] | Artifact


@stage_task("model")
def find_model(config: ModelConfig, selection: SelectionConfig) -> Made:
    """Find the original model, which must have the layers that are asked for."""
    return make("model", lambda store, progress: stages.find_model(config, selection, store=store))


@stage_task("data{at}")
def prepare_data(config: DataConfig, base: Artifact, at: str = "") -> Made:
    """Fill the long, short and original buckets."""
    return make(
        f"data{at}",
        lambda store, progress: stages.prepare_data(
            config, base, store=store, on_progress=progress, map_groups=map_groups
        ),
        shows_progress=True,
    )


@stage_task("extension{at}")
def extend_model(
    config: ExtensionConfig, base: Artifact, start: Artifact | None = None, at: str = ""
) -> Made:
    """Rescale RoPE."""
    return make(
        f"extension{at}",
        lambda store, progress: stages.extend_model(config, base, start, store=store),
    )


@stage_task("profiling{at}")
def profile_attention(
    config: ProfilingConfig, base: Artifact, extended: Artifact, data: Artifact, at: str = ""
) -> Made:
    """Measure the drift of every layer."""
    return make(
        f"profiling{at}",
        lambda store, progress: stages.profile_attention(
            config, base, extended, data, store=store, on_progress=progress
        ),
        shows_progress=True,
    )


@stage_task("selection{at}")
def select_layers(config: SelectionConfig, profile: Artifact, at: str = "") -> Made:
    """Choose the layers to distil."""
    return make(
        f"selection{at}", lambda store, progress: stages.select_layers(config, profile, store=store)
    )


@stage_task("training {method}{at}")
def train_student(
    config: TrainingConfig,
    method: str,
    base: Artifact,
    extended: Artifact,
    data: Artifact,
    layers: Artifact,
    at: str = "",
) -> Made:
    """Train one student by one method."""
    return make(
        f"training/{method}{at}",
        lambda store, progress: stages.train_student(
            config, method, base, extended, data, layers, store=store, on_progress=progress
        ),
        shows_progress=True,
    )


@stage_task("evaluation samples")
def freeze_samples(config: EvaluationConfig, base: Artifact, data: Artifact) -> Made:
    """Write every question once."""
    return make(
        "evaluation/samples",
        lambda store, progress: stages.freeze_samples(config, base, data, store=store),
    )


@stage_task("evaluation {name}")
def evaluate_model(
    config: EvaluationConfig,
    name: str,
    model: Artifact,
    base: Artifact,
    samples: Artifact,
    data: Artifact,
) -> Made:
    """Ask one model every question."""
    return make(
        f"evaluation/{name}",
        lambda store, progress: stages.evaluate_model(
            config, name, model, base, samples, data, store=store, on_progress=progress
        ),
        shows_progress=True,
    )


@stage_task("report")
def write_report(
    config: ReportConfig,
    recipe: dict[str, Any],
    data: Artifact,
    extended: Artifact,
    profile: Artifact,
    layers: Artifact,
    students: dict[str, Artifact],
    samples: Artifact,
    scores: dict[str, Artifact],
) -> Made:
    """Compare the models."""
    return make(
        "report",
        lambda store, progress: stages.write_report(
            config,
            recipe,
            data,
            extended,
            profile,
            layers,
            students,
            samples,
            scores,
            store=store,
        ),
    )
