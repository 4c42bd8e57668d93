"""A whole run: its sections, and the values that several of them share."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from longred.config.checks import problems
from longred.config.data import DataConfig
from longred.config.evaluation import EvaluationConfig
from longred.config.model import AttentionConfig, ExtensionConfig, ModelConfig, WindowConfig
from longred.config.outputs import ReportConfig, StoreConfig, TrackingConfig
from longred.config.profiling import ProfilingConfig, SelectionConfig
from longred.config.section import Count, Section
from longred.config.strings import refused_texts
from longred.config.training import TrainingConfig

COPIES = {
    "seed": "seed",
    "original_window": "original_window",
    "target_window": "target_window",
    "short_length": "data.short_length",
    "ratio": "data.ratio",
    "attention_backend": "attention.backend",
}
"""What sections hold copies of, filled at load: field → the key that a user sets."""


class RunConfig(Section):
    """A whole run; windows and seed are said once and copied into the sections that use them."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    seed: Annotated[int, Field(ge=0)] = 0
    original_window: Count
    target_window: Count
    model: ModelConfig = ModelConfig()
    attention: AttentionConfig = AttentionConfig()
    data: DataConfig
    extension: ExtensionConfig = ExtensionConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    selection: SelectionConfig = SelectionConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig
    report: ReportConfig = ReportConfig()
    store: StoreConfig = StoreConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _refuse_secrets(cls, values: Any) -> Any:
        for problem in refused_texts(values):
            raise ValueError(problem)
        return values

    @model_validator(mode="before")
    @classmethod
    def _copy_shared_values(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        result = dict(values)
        shared = {key: result[key] for key in COPIES if key in result and key in cls.model_fields}
        data = result.get("data")
        if isinstance(data, Mapping):
            for key in ("short_length", "ratio"):
                shared[key] = data.get(key, DataConfig.model_fields[key].default)
        attention = result.get("attention", {})
        if isinstance(attention, Mapping):
            shared["attention_backend"] = attention.get("backend", AttentionConfig().backend)
        for name, field in cls.model_fields.items():
            section = result.get(name, {})
            kind = field.annotation
            if not (
                isinstance(kind, type)
                and issubclass(kind, Section)
                and isinstance(section, Mapping)
            ):
                continue
            copies = {k: v for k, v in shared.items() if k in kind.model_fields}
            if name == "data":
                copies = {k: v for k, v in copies.items() if k not in ("short_length", "ratio")}
            for key in copies.keys() & section.keys():
                if section[key] != copies[key]:
                    owner = COPIES[key]
                    raise ValueError(f"{name}.{key}: is a copy of {owner}; set {owner} instead")
            result[name] = {**section, **copies}
        return result

    def windows(self) -> "list[RunConfig]":
        """Return this run at each window on the way to its target, smallest first."""
        return [self._at(window) for window in self.extension.windows]

    def _at(self, window: WindowConfig) -> "RunConfig":
        reach = {"target_window": window.target_window}
        theta = window.rope_theta or self.extension.rope_theta
        steps = window.num_steps or self.training.num_steps
        changed: dict[str, dict[str, Any]] = {
            "extension": {"rope_theta": theta, "windows": []},
            "data": {},
            "training": {"num_steps": steps, "keep_steps": []},
        }
        sections = {
            name: getattr(self, name).model_copy(update={**reach, **values})
            for name, values in changed.items()
        }
        return self.model_copy(update={**reach, **sections})

    @model_validator(mode="after")
    def _check(self) -> Self:
        for problem in problems(self):
            raise ValueError(problem)
        return self
