"""The dotted keys that a recipe can set, their types in words, and the nearest to a wrong key."""

import difflib
import math
from collections.abc import Iterator, Sequence
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from longred.config.run import RunConfig, is_copy
from longred.config.section import Section, section_in

PATTERNS = {
    r"^[a-z0-9][a-z0-9_-]*$": "lower-case letters, digits, _ and -, first a letter or digit",
    r"^[a-z0-9][a-z0-9._-]*$": "lower-case letters, digits, ., _ and -, first a letter or digit",
}
"""Regular expression of a text setting → the same in words."""


class Kind(NamedTuple):
    """What a key holds.

    Attributes:
        annotation: its type.
        notes: the extras of the type: bounds and patterns.
    """

    annotation: Any
    notes: tuple[Any, ...] = ()

    def arms(self) -> Iterator["Kind"]:
        """Yield the types that it can be, None left out."""
        origin = get_origin(self.annotation)
        if origin is Annotated:
            inner, *notes = get_args(self.annotation)
            yield from Kind(inner, (*self.notes, *notes)).arms()
        elif origin is not None and origin.__name__ in ("Union", "UnionType"):
            for arm in get_args(self.annotation):
                yield from Kind(arm, self.notes).arms()
        elif self.annotation is not NoneType:
            yield self

    def takes_null(self) -> bool:
        """Return whether null is a value of it."""
        return NoneType in get_args(self.annotation)

    def choices(self) -> list[str]:
        """Return the names that it, or each of its items, can be; empty for other types."""
        found: list[str] = []
        for arm in self.arms():
            if get_origin(arm.annotation) is Literal:
                found += map(str, get_args(arm.annotation))
            elif get_origin(arm.annotation) in (list, tuple):
                found += Kind(get_args(arm.annotation)[0]).choices()
        return found

    def at(self, part: str | int) -> "Kind | None":
        """Return what one key or index inside it holds; None if it has no such thing."""
        for arm in self.arms():
            kind, arguments = arm.annotation, get_args(arm.annotation)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                if part in kind.model_fields:
                    field = kind.model_fields[str(part)]
                    return Kind(field.annotation, tuple(field.metadata))
            elif get_origin(kind) is dict:
                return Kind(arguments[1])
            elif get_origin(kind) is list:
                return Kind(arguments[0])
            elif get_origin(kind) is tuple and isinstance(part, int):
                is_open = Ellipsis in arguments
                if is_open or part < len(arguments):
                    return Kind(arguments[0 if is_open else part])
        return None

    def words(self) -> str:
        """Return what a value must be, as in "must be …"."""
        arms = [_words(arm) for arm in self.arms()]
        return " or ".join([*arms, *(["null"] if self.takes_null() else [])])


def kind_of(root: type[BaseModel], location: Sequence[str | int]) -> Kind | None:
    """Return what a location of the settings holds; None if the location does not exist."""
    kind: Kind | None = Kind(root)
    for part in location:
        kind = kind.at(part) if kind else None
    return kind


def _words(arm: Kind) -> str:
    kind, origin, arguments = arm.annotation, get_origin(arm.annotation), get_args(arm.annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if arguments[1:] else str(arguments[0])
    if origin is list or (origin is tuple and Ellipsis in arguments):
        least = max([0, *_bounds(arm.notes, "min_length")])
        length = f" of {least:g} or more items" if least else ""
        return f"a list{length}, each {Kind(arguments[0]).words()}"
    if origin is tuple:
        return f"a list of {len(arguments)} items, each {Kind(arguments[0]).words()}"
    if origin is dict:
        names = ", ".join(Kind(arguments[0]).choices())
        return f"a group of {names or 'names'}, each {Kind(arguments[1]).words()}"
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        return ("a whole number" if kind is int else "a number") + _range(arm.notes)
    if kind is str:
        pattern = next((note.pattern for note in arm.notes if hasattr(note, "pattern")), None)
        return f"text of {PATTERNS.get(pattern, pattern)}" if pattern else "text"
    needed = [name for name, field in kind.model_fields.items() if field.is_required()]
    return "a group of settings" + (f" with {', '.join(needed)}" if needed else "")


def _bounds(notes: Sequence[Any], name: str) -> list[float]:
    """Return the finite bounds of this name."""
    found = [getattr(note, name, None) for note in notes]
    return [bound for bound in found if isinstance(bound, int | float) and math.isfinite(bound)]


def _range(notes: Sequence[Any]) -> str:
    least, above = _bounds(notes, "ge"), _bounds(notes, "gt")
    most, below = _bounds(notes, "le"), _bounds(notes, "lt")
    if least and most:
        return f" from {max(least):g} to {min(most):g}"
    lower = f" of {max(least):g} or more" if least else f" above {max(above):g}" if above else ""
    upper = f"at most {min(most):g}" if most else f"below {min(below):g}" if below else ""
    return f"{lower} and {upper}" if lower and upper else lower or (f" {upper}" if upper else "")


def settable(kind: type[Section], section: str | None) -> list[str]:
    """Return the fields of a section that are not copies of shared values."""
    return [name for name in kind.model_fields if not is_copy(section, name)]


@cache
def all_keys() -> tuple[str, ...]:
    """Return all dotted keys of a recipe, groups included; items of lists by the index 0."""
    return tuple(_keys_in(RunConfig, ""))


def _keys_in(kind: type[Section], prefix: str) -> Iterator[str]:
    section = prefix.rstrip(".").rpartition(".")[2] or None
    for name in settable(kind, section):
        yield prefix + name
        annotation = kind.model_fields[name].annotation
        if inner := section_in(annotation):
            is_list = get_origin(annotation) is list
            yield from _keys_in(inner, f"{prefix}{name}.{'0.' if is_list else ''}")


def settings_named(name: str) -> list[str]:
    """Return up to three settings whose dotted key is, or ends in, a name; - counts as _."""
    name = name.replace("-", "_").lower()
    groups = {key.rpartition(".")[0] for key in all_keys()}
    keys = [key for key in all_keys() if key not in groups]
    return [name] if name in keys else [key for key in keys if key.endswith(f".{name}")][:3]


def with_initials(name: str, known: Sequence[str]) -> list[str]:
    """Return the names whose words begin with the letters of a short one: lr, learning_rate."""
    return [each for each in known if "".join(w[:1] for w in each.split("_")) == name and name[1:]]


def nearest_keys(key: str, known: Sequence[str]) -> list[str]:
    """Return up to three keys that a wrong one may have meant, best first, else none.

    Args:
        key: the wrong dotted key.
        known: the last parts of the keys that stand where it stands.
    """
    above, _, last = key.rpartition(".")
    name = last.replace("-", "_").lower()[:100]
    if name in known:
        return [f"{above}.{name}" if above else name]
    # Other programs count the rows of a batch, here it is tokens.
    in_tokens = name.replace("batch_size", "batch_tokens")
    near = [in_tokens] if in_tokens in known else []
    if in_tokens != name and not near:
        near = difflib.get_close_matches(in_tokens, known, n=3)
    if near:
        return [f"{above}.{each}" if above else each for each in near]
    section = key.partition(".")[0]
    elsewhere = [each for each in all_keys() if each.rpartition(".")[2] == name]
    if elsewhere:
        return sorted(elsewhere, key=lambda each: not each.startswith(f"{section}."))[:3]
    near = with_initials(name, known) or difflib.get_close_matches(name, known, n=3)
    if near:
        return [f"{above}.{each}" if above else each for each in near]
    parts = {each.rpartition(".")[2] for each in all_keys()}
    near = difflib.get_close_matches(name, sorted(parts), n=2, cutoff=0.75)
    return [each for part in near for each in all_keys() if each.rpartition(".")[2] == part][:3]
