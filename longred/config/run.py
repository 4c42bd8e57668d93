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
    """Return whether a section's field is a copy; `section` None is the top level."""
    key = f"{section}.{name}" if section else name
    return COPIES.get(name, key) != key


class ReportConfig(Section):
    """How scores are compared; tasks that the original model barely solves are dropped first."""

    title: str = "Restoration after context extension"
    min_points_above_chance: NonNegative = 10.0


class StoreConfig(Section):
    """Folder of artifacts, work in progress and run records.

    `remote` is an fsspec address (`s3://bucket/folder`) that receives a copy of finished artifacts.
    """

    path: Undigested[str] = "outputs"
    remote: Undigested[str | None] = None


class TrackingConfig(Section):
    """Address of the MLflow server; without a `uri`, an SQLite file inside the store."""

    uri: Undigested[str | None] = None
    experiment: Undigested[str] = "longred"


class RunConfig(Section):
    """A whole run; windows and seed are set once and copied into the sections that use them."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    seed: CountOrZero = 0
    original_window: Count
    target_window: Count
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
        shared = {key: result[key] for key in COPIES if key in result and key in cls.model_fields}
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
