"""A whole run: all sections, with values set once and copied into the sections that use them."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from longred.config.checks import problems, refused_texts
from longred.config.data import DataConfig
from longred.config.derived import with_derived
from longred.config.evaluation import EvaluationConfig
from longred.config.model import (
    AttentionConfig,
    ExtensionConfig,
    ModelConfig,
    ProfilingConfig,
    SelectionConfig,
    WindowConfig,
)
from longred.config.section import Section, section_in
from longred.config.training import TrainingConfig
from longred.method.values import Count, CountOrZero, NonNegative, Undigested

COPIES = {
    "seed": "seed",
    "original_window": "original_window",
    "target_window": "target_window",
    "short_length": "data.short_length",
    "ratio": "data.ratio",
    "attention_backend": "attention.backend",
}
"""Fields of sections that are filled at load: field → the key that a user sets."""


def is_copy(section: str | None, name: str) -> bool:
    """Return whether a section's field is a copy; `section` None is the top level.

    Groups inside of sections hold no copies, whatever their fields are called.
    """
    if section is not None and section not in RunConfig.model_fields:
        return False
    key = f"{section}.{name}" if section else name
    return COPIES.get(name, key) != key


def readers(key: str) -> list[str]:
    """Return the sections that read a dotted key: its own, and those that hold a copy of it."""
    section, _, name = key.rpartition(".")
    copying = [
        each
        for each, field in RunConfig.model_fields.items()
        if (kind := section_in(field.annotation)) and name in kind.model_fields
        if is_copy(each, name) and COPIES[name] == key
    ]
    return [*filter(None, [section.partition(".")[0]]), *copying]


class ReportConfig(Section):
    """How the models' scores are compared and shown."""

    title: str = Field(
        default="Restoration after context extension", description="Title of the report's page."
    )
    min_points_above_chance: NonNegative = Field(
        default=10.0,
        description="Percentage points above chance that the original model must reach in a task; "
        "tasks below are left out of the comparison.",
    )


class StoreConfig(Section):
    """Where artifacts, work in progress and run records lie."""

    path: Undigested[str] = Field(
        default="outputs",
        description="Folder of artifacts, work in progress and run records. The variable "
        "LONGRED_STORE replaces it; an override wins over both.",
        examples=["/data/longred"],
    )
    remote: Undigested[str | None] = Field(
        default=None,
        description="Address, as fsspec reads it, that receives a copy of finished artifacts; null "
        "for none. The variable LONGRED_STORE_REMOTE replaces it.",
        examples=["s3://bucket/longred"],
    )
    wait: Undigested[bool] = Field(
        default=False,
        description="Whether to wait for a stage that another process is building, rather than "
        "refuse; a study sets it.",
    )


class TrackingConfig(Section):
    """Which MLflow server shows the runs."""

    uri: Undigested[str | None] = Field(
        default=None,
        description="Address of the MLflow server; null records runs in a file of the store, which "
        "`longred up` shows. The variable LONGRED_TRACKING_URI replaces it.",
        examples=["http://mlflow:5000"],
    )
    experiment: Undigested[str] = Field(
        default="longred", description="Name of the MLflow experiment that runs are shown in."
    )
    parent_run_id: Undigested[str | None] = Field(
        default=None,
        description="Id of the MLflow run that groups this run with others; a study sets it.",
        examples=["0f3c9b6a7d2e4c1f8a5b6c7d8e9f0a1b"],
    )


class RunConfig(Section):
    """A whole run; windows and seed are set once and copied into the sections that use them."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$",
        description="Name of the recipe, which becomes a part of run ids: small letters, digits, "
        "dot, - and _.",
        examples=["my-model-128k"],
    )
    seed: CountOrZero = Field(
        default=0,
        description="Number that determines all random choices: held-out documents, order of "
        "blocks, skipped positions, samples.",
    )
    original_window: Count = Field(
        description="Window that the original model was trained for, in tokens.", examples=[8192]
    )
    target_window: Count = Field(
        description="Window of the extended model in tokens, larger than original_window.",
        examples=[32_768],
    )
    model: ModelConfig = ModelConfig()
    attention: AttentionConfig = AttentionConfig()
    data: DataConfig
    extension: ExtensionConfig = ExtensionConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    selection: SelectionConfig = SelectionConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()
    store: StoreConfig = StoreConfig()
    tracking: TrackingConfig = TrackingConfig()

    def windows(self) -> list[Self]:
        """Return this run at each intermediate window, smallest first."""
        return [self._at(window) for window in self.extension.windows]

    def _at(self, window: WindowConfig) -> Self:
        target: dict[str, Any] = {"target_window": window.target_window}
        theta = window.rope_theta or self.extension.rope_theta
        num_steps = window.num_steps or self.training.num_steps
        # Text is cut as for the last window, so that its held-out documents stay unseen.
        data = self.data.model_copy(update=target | {"split_bytes": self.data.piece_bytes()})
        extension = self.extension.model_copy(update=target | {"rope_theta": theta, "windows": []})
        training = self.training.model_copy(
            update=target | {"num_steps": num_steps, "keep_steps": ()}
        )
        sections = {"data": data, "extension": extension, "training": training}
        return self.model_copy(update=target | sections)

    @model_validator(mode="before")
    @classmethod
    def _copy_shared_values(cls, values: Any) -> Any:
        for problem in refused_texts(values):
            raise ValueError(problem)
        if not isinstance(values, Mapping):
            return values
        result = with_derived(values)
        shared = {"seed": cls.model_fields["seed"].default}
        shared |= {key: result[key] for key in COPIES if key in result and key in cls.model_fields}
        data, attention = result.get("data"), result.get("attention", {})
        if isinstance(data, Mapping):
            for key in ("short_length", "ratio"):
                shared[key] = data.get(key, DataConfig.model_fields[key].default)
        if isinstance(attention, Mapping):
            shared["attention_backend"] = attention.get("backend", AttentionConfig().backend)
        for name, field in cls.model_fields.items():
            section, kind = result.get(name, {}), section_in(field.annotation)
            if kind is None or not isinstance(section, Mapping):
                continue
            copies = {
                key: value
                for key, value in shared.items()
                if key in kind.model_fields and is_copy(name, key)
            }
            for key in copies.keys() & section.keys():
                if section[key] != copies[key]:
                    owner = COPIES[key]
                    raise ValueError(f"{name}.{key}: is a copy of {owner}; set {owner} instead")
            result[name] = {**section, **copies}
        return result

    @model_validator(mode="after")
    def _check(self) -> Self:
        for problem in problems(self):
            raise ValueError(problem)
        return self
