"""The base class of all sections: frozen, strict, and explicit about what enters a digest."""

import dataclasses
import inspect
import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from longred.errors import shown
from longred.method.values import UNDIGESTED

Bucket = Literal["long", "short", "original"]
AttentionBackend = Literal[
    "auto", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4"
]

MAX_NUMBER = 10**15
"""Whole numbers of settings are smaller: exact as 64-bit floats, in products of two as integers."""

MAX_TEXT = 4096
"""Most characters of a text setting: the longest path on Linux."""

MAX_NAME = 100
"""Most characters of a run's or source's name, which becomes part of file names."""

MAX_FILE_NAME = 255
"""Most bytes between two slashes of a path."""

FREE_TEXTS = ("title", "description", "text", "label", "source", "env_command")
"""Fields whose text is neither a path nor a name."""


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys.

    Fields annotated `longred.method.values.Undigested` stay out of digests. Every field has a
    description: its own, or the one in the docstring of the dataclass that it comes from.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _refuse_huge(cls, value: Any, info: ValidationInfo) -> Any:
        for item in _items(value):
            if isinstance(item, int) and not -MAX_NUMBER < item < MAX_NUMBER:
                raise ValueError(f"must be less than {MAX_NUMBER:,}, got {shown(item)}")
            if isinstance(item, str) and (problem := _length_problem(info.field_name, item)):
                raise ValueError(problem)
        return value

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Describe the fields inherited from a dataclass, which cannot use pydantic's `Field`."""
        bases = [base for base in cls.__mro__ if dataclasses.is_dataclass(base)]
        texts = {name: text for base in bases for name, text in attribute_texts(base).items()}
        undescribed = [
            (field, texts[name])
            for name, field in cls.model_fields.items()
            if field.description is None and name in texts
        ]
        for field, text in undescribed:
            field.description = text
        if undescribed:
            cls.model_rebuild(force=True)

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


def _length_problem(field: str | None, text: str) -> str | None:
    """Return why a text is too long for its field, or None."""
    limit = MAX_NAME if field == "name" else MAX_TEXT
    if len(text) > limit:
        return f"has {len(text):,} characters; the most are {limit:,}"
    if field in FREE_TEXTS or len(text) <= MAX_FILE_NAME // 4:
        return None
    longest = max(len(part.encode("utf-8", "replace")) for part in text.split("/"))
    if longest > MAX_FILE_NAME:
        return f"has a part of {longest:,} bytes; names of files have at most {MAX_FILE_NAME}"
    return None


def _items(value: Any) -> Iterable[Any]:
    """Return the values in a list or group, or the value itself."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else (value,)


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.digest_values()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def attribute_texts(kind: type) -> dict[str, str]:
    """Return the texts of the section `Attributes:` of a class's docstring, as sentences."""
    _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE)
    texts = {name: re.sub(r"\s+", " ", text).strip() for name, text in entries}
    return {name: text[:1].upper() + text[1:] for name, text in texts.items()}


def section_in(annotation: Any) -> type[Section] | None:
    """Return the section that an annotation is, or is a list of."""
    kinds = (annotation, *getattr(annotation, "__args__", ()))
    return next((a for a in kinds if isinstance(a, type) and issubclass(a, Section)), None)
