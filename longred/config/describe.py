"""What can be set, for people: every key of a recipe with its description, type and default.

Everything comes from the fields of the sections. `longred config` prints it, `longred init` writes
it into recipes, editors read it as JSON Schema, and Prefect's forms refuse keys that are not here.
"""

import difflib
import functools
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from longred.config.derived import DERIVED
from longred.config.keys import Kind, with_initials
from longred.config.run import COPIES, RunConfig, is_copy
from longred.config.section import Section, section_in
from longred.errors import ConfigError
from longred.method.values import BY_CONTENT, UNDIGESTED

DIALECT = "https://json-schema.org/draft/2020-12/schema"

COUNTED = re.compile(
    ".*(tokens|steps|bytes|seconds|characters|rows|samples|layers|processes|workers|threads|"
    "checkpoints|bins|tasks|spikes)"
)
"""A number whose name ends in one of these words has it as its unit."""

UNITS = {
    **dict.fromkeys(("length", "lengths", "short_length", "short_context"), "tokens"),
    **dict.fromkeys(("original_window", "target_window", "short_window"), "tokens"),
    "limit": "samples",
    **dict.fromkeys(("validation_fraction", "max_rejected_fraction"), "share, from 0 to 1"),
    **dict.fromkeys(("share", "merge_weight", "vllm_memory_fraction"), "share, from 0 to 1"),
    "max_epochs": "epochs",
    "memory_gb": "GB",
    "min_points_above_chance": "percentage points",
    "spike_mads": "median absolute deviations",
    "sigma": "half original windows",
}
"""Last part of a number's name → its unit, where the name does not end in it."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key that a recipe can set.

    Attributes:
        name: dotted, with `N` for the number of a list's item: `data.sources.N.path`.
        description: one or two sentences.
        type_text: the values that it takes, in the words that refuse others.
        default: the value if it is not set, as plain YAML values; None if it is required.
        is_required: whether every recipe must set it.
        allowed: the values to choose from; empty if there are others.
        unit: of a number; None for other types and for numbers without one.
        is_runtime: whether it stays out of digests, because it cannot change a result.
        example: an override that sets it, not quoted for a shell.
        pattern: regular expression of its name in an override, with a possible item's name or
            number.
    """

    name: str
    description: str
    type_text: str
    default: Any
    is_required: bool
    allowed: tuple[Any, ...]
    unit: str | None
    is_runtime: bool
    example: str
    pattern: str

    @property
    def summary(self) -> str:
        """The first sentence of the description."""
        return first_sentence(self.description)

    @property
    def default_text(self) -> str:
        """The default as YAML, or in words if it follows from others; `required` if none."""
        if self.name in DERIVED:
            return DERIVED[self.name]
        return "required" if self.is_required else yaml_text(self.default)


def keys(prefix: str = "") -> list[Key]:
    """Return the keys under a dotted prefix (a group or a key), in the order to read them."""
    return [key for name, key in _keys().items() if _is_under(name, prefix)]


def key(name: str) -> Key:
    """Return one key; items of lists may be numbered, items of mappings named.

    Raises:
        ConfigError: there is no such key; the message names the nearest.
    """
    in_override = re.sub(r"\.N(?=\.|$)", ".0", name)
    for each in keys():
        if re.fullmatch(each.pattern, in_override):
            return each
    raise ConfigError(unknown_key(name, [*groups(), *_keys()]))


def groups() -> dict[str, str]:
    """Return what each group of keys is, by its dotted name: sections, and the groups in them."""
    return {name: first_sentence(kind.__doc__ or "") for name, kind in _groups(RunConfig, "")}


def override_pattern(section: str | None = None) -> str:
    """Return a regular expression that matches overrides of known keys and groups.

    Args:
        section: accept only keys of this section; None for all.
    """
    names = [each.pattern for each in keys(section or "")]
    names += [_pattern(name) for name in groups() if _is_under(name, section or "")]
    return f"^({'|'.join(names)})="


def check_overrides(overrides: Sequence[str], section: str) -> None:
    """Refuse overrides of keys that a section does not have.

    Raises:
        ConfigError: a key is unknown, or of another section; the message says what to do.
    """
    for override in overrides:
        if re.match(override_pattern(section), override):
            continue
        name, is_set, _ = override.partition("=")
        if not is_set or not name:
            raise ConfigError(f"{override}: an override has the form {section}.key=value")
        if re.match(override_pattern(), override):
            raise ConfigError(
                f"{name}: only settings of {section} can change here; to change others, run the "
                "whole pipeline with the id of the earlier run as its recipe"
            )
        raise ConfigError(unknown_key(name, [each.name for each in keys(section)]))


def unknown_key(name: str, known: Sequence[str]) -> str:
    """Return a message about an unknown name: what it may mean, or where to look.

    Dashes, and names without their section, are understood.
    """
    plain = without_numbers(name.lstrip("-").replace("-", "_"))
    parent, _, last = plain.rpartition(".")
    if parent and is_copy(parent, last):
        return f"{name}: is a copy of {COPIES[last]}; set {COPIES[last]} instead"
    near = [each for each in known if each.rpartition(".")[2] == last]
    siblings = {
        each.rpartition(".")[2]: each for each in known if each.rpartition(".")[0] == parent
    }
    near = near or [siblings[one] for one in with_initials(last, list(siblings))]
    near = near or [siblings[one] for one in difflib.get_close_matches(last, siblings, n=2)]
    if not near and (not parent or not siblings):
        by_last = {each.rpartition(".")[2]: each for each in known}
        near = [by_last[one] for one in difflib.get_close_matches(last, by_last, n=2)]
    if near:
        near.sort(key=lambda each: -difflib.SequenceMatcher(None, plain, each).ratio())
        return f"{name}: unknown key; did you mean {' or '.join(near[:3])}?"
    where = f" {parent}" if parent and siblings else ""
    return f"{name}: unknown key; `longred config{where}` lists what there is"


@functools.cache
def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a recipe, without copies of shared values."""
    schema = RunConfig.model_json_schema()
    for name, kind in _groups(RunConfig, ""):
        for field in [each for each in kind.model_fields if is_copy(name, each)]:
            schema["$defs"][kind.__name__]["properties"].pop(field, None)
    for one in (schema, *schema["$defs"].values()):
        one.pop("title", None)
        for part in one["properties"].values():
            part.pop("title", None)
            if "$ref" in part:
                # A group's default holds copies too; the defaults of its keys say the same.
                part.pop("default", None)
    return {"$schema": DIALECT, "title": "Recipe of longred", **schema}


def without_numbers(name: str) -> str:
    """Return a dotted name with `N` for the numbers of lists' items."""
    return re.sub(r"\.\d+(?=\.|$)", ".N", name)


def yaml_text(value: Any) -> str:
    """Return a plain value as YAML on one line."""
    if isinstance(value, str) and (not value or yaml.safe_load(value) != value):
        return json.dumps(value)
    text: str = yaml.safe_dump(value, default_flow_style=True, width=2**20, sort_keys=False)
    return text.removesuffix("...\n").strip()


def first_sentence(text: str) -> str:
    """Return the first sentence of a text, with its full stop."""
    return re.split(r"(?<=\.)\s", text.strip(), maxsplit=1)[0]


def _is_under(name: str, prefix: str) -> bool:
    return not prefix or f"{name}.".startswith(f"{prefix}.")


def _groups(kind: type[Section], prefix: str) -> Iterator[tuple[str, type[Section]]]:
    """Yield the groups in a section with their dotted names, outer ones first."""
    for name, field in kind.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None:
            path = f"{prefix}{name}.N" if _is_list(field) else f"{prefix}{name}"
            yield path, inner
            yield from _groups(inner, f"{path}.")


@functools.cache
def _keys() -> dict[str, Key]:
    return {each.name: each for each in _walk(RunConfig, "", json_schema(), is_runtime=False)}


def _walk(
    kind: type[Section], prefix: str, schema: Mapping[str, Any], *, is_runtime: bool
) -> Iterator[Key]:
    """Yield the keys of a section and of the groups in it; `schema` has no copies."""
    for name in _in_order(kind, schema["properties"]):
        field = kind.model_fields[name]
        inner, is_list = section_in(field.annotation), _is_list(field)
        is_free = UNDIGESTED in field.metadata and BY_CONTENT not in field.metadata
        if inner is None or is_list:
            yield _key(f"{prefix}{name}", field, schema["properties"][name], is_runtime or is_free)
        if inner is not None:
            below = f"{prefix}{name}.N." if is_list else f"{prefix}{name}."
            definition = json_schema()["$defs"][inner.__name__]
            yield from _walk(inner, below, definition, is_runtime=is_runtime or is_free)


def _in_order(kind: type[Section], names: Iterable[str]) -> list[str]:
    """Return a section's own fields, then inherited ones; groups last, except for a whole recipe.

    Method and baselines of a training are its own, learning rate and steps are inherited.
    """
    own = inspect.get_annotations(kind)

    def place(name: str) -> tuple[bool, bool]:
        field = kind.model_fields[name]
        is_group = section_in(field.annotation) is not None and not _is_list(field)
        return is_group and kind is not RunConfig, name not in own

    return sorted(names, key=place)


def _is_list(field: FieldInfo) -> bool:
    return getattr(field.annotation, "__origin__", None) is list


def _key(name: str, field: FieldInfo, schema: Mapping[str, Any], is_runtime: bool) -> Key:
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    value = kinds[0]
    choices = value.get("enum", (True, False) if value.get("type") == "boolean" else ())
    allowed = tuple(one for one in choices if "enum" not in value or not isinstance(one, bool))
    default = schema.get("default")
    item = {"array": r"(\.\d+)?", "object": r"(\.\w+)?"}.get(value.get("type", ""), "")
    return Key(
        name=name,
        description=field.description or "",
        type_text=Kind(field.annotation, tuple(field.metadata)).words(),
        default=default,
        is_required=field.is_required(),
        allowed=allowed,
        unit=_unit(name, value),
        is_runtime=is_runtime,
        example=_example(name, field, allowed, default),
        pattern=_pattern(name) + item,
    )


def _pattern(name: str) -> str:
    return re.sub(r"\\\.N(?=\\\.|$)", r"\\.\\d+", re.escape(name))


def _unit(name: str, schema: Mapping[str, Any]) -> str | None:
    """Return the unit of a number or of a list of numbers."""
    items = schema.get("items", schema)
    if items.get("type") not in ("integer", "number"):
        return None
    last = name.rpartition(".")[2]
    counted = COUNTED.fullmatch(last)
    return UNITS.get(last) or (counted[1] if counted else None)


def _example(name: str, field: FieldInfo, allowed: Sequence[Any], default: Any) -> str:
    """Return an override of the key: its own example, another choice, or the default."""
    value = next((one for one in allowed if one != default), default)
    value = field.examples[0] if field.examples else [100, 200] if value == [] else value
    return f"{name.replace('.N.', '.0.')}={yaml_text(value)}"
