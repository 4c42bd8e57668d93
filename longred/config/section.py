"""What every section of a configuration is: frozen, strict, and clear about what is identity."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Bucket = Literal["long", "short", "original"]
Device = Literal["auto", "cpu", "cuda"]
AttentionBackend = Literal[
    "auto", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4"
]


def runtime(default: Any, **constraints: Any) -> Any:
    """Declare a field that cannot change a result and so stays out of every digest."""
    return Field(default, json_schema_extra={"runtime": True}, **constraints)


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    def digest_values(self) -> dict[str, Any]:
        """Return the settings that can change a result, as plain JSON values."""
        values: dict[str, Any] = {}
        for name in type(self).model_fields:
            if name in self._runtime_names():
                continue
            value = getattr(self, name)
            values[name] = value.digest_values() if isinstance(value, Section) else _plain(value)
        return values

    def runtime_values(self) -> dict[str, Any]:
        """Return the section's own settings that cannot change a result, as plain JSON values."""
        return {name: _plain(getattr(self, name)) for name in self._runtime_names()}

    @classmethod
    def _runtime_names(cls) -> list[str]:
        extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return [n for n, e in extras.items() if isinstance(e, dict) and e.get("runtime")]


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.digest_values()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
