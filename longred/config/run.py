"""A whole run: values said once are copied into the sections that use them, and all is checked."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from longred.config.checks import problems
from longred.config.data import DataConfig
from longred.config.model import AttentionConfig
from longred.config.section import Section
from longred.config.strings import refused_texts
from longred.config.values import RunValues

COPIES = {
    "seed": "seed",
    "original_window": "original_window",
    "target_window": "target_window",
    "short_length": "data.short_length",
    "ratio": "data.ratio",
    "attention_backend": "attention.backend",
}
"""What sections hold copies of, filled at load: field → the key that a user sets."""


class RunConfig(RunValues):
    """A whole run; windows and seed are said once and copied into the sections that use them."""

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

    @model_validator(mode="after")
    def _check(self) -> Self:
        for problem in problems(self):
            raise ValueError(problem)
        return self
