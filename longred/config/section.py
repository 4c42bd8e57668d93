"""The base class of all sections: frozen, strict, and explicit about what enters a digest."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from longred.method.values import UNDIGESTED

Bucket = Literal["long", "short", "original"]
AttentionBackend = Literal[
    "auto", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4"
]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys.

    Fields annotated `longred.method.values.Undigested` stay out of digests.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    def digest_values(self) -> dict[str, Any]:
        """Return the settings that can change a result, as plain JSON values."""
        runtime = self.runtime_values()
        return {name: _plain(value) for name, value in dict(self).items() if name not in runtime}

    def runtime_values(self) -> dict[str, Any]:
        """Return the settings that stay out of digests, as plain JSON values."""
        return {
            name: _plain(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if UNDIGESTED in field.metadata
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.digest_values()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def section_in(annotation: Any) -> type[Section] | None:
    """Return the section that an annotation is, or is a list of."""
    kinds = (annotation, *getattr(annotation, "__args__", ()))
    return next((a for a in kinds if isinstance(a, type) and issubclass(a, Section)), None)
