"""Say in plain words what is wrong with the settings that pydantic refused.

One wrong value is one message: the dotted key, what the value must be, the value, and the line of
the recipe. What a value must be comes from the setting's type (`keys`), not from pydantic's text.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from longred.config.keys import Kind, kind_of, nearest_keys, settable
from longred.config.run import RunConfig, is_copy
from longred.config.section import Section
from longred.errors import shorten, shown

MAX_PROBLEMS = 10
"""Most problems of a recipe that are named; the others are counted."""

_REQUIRED = "is required"
_UNITS = {"k": 1024, "m": 1024**2}
_NUMBER = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([kKmM])\Z")
_EXPONENT = re.compile(r"\d{1,9}(?:\.\d{1,9})?[eE]\+?\d{1,2}\Z")
_COMMAS = re.compile(r"\d{1,3}(?:,\d{3}){1,5}\Z")


def problems_in(
    error: ValidationError,
    *,
    root: type[Section] = RunConfig,
    prefix: str = "",
    place: Callable[[str], str] = lambda _: "",
) -> str:
    """Return the messages about settings that failed their checks, one a line.

    Args:
        error: what pydantic found.
        root: the settings that were read.
        prefix: their dotted key, if they are a part of a recipe.
        place: returns where a dotted key was written, or nothing; for an empty key, the file.
    """
    found: dict[str, str] = {}
    for problem in _without_copies(error.errors(include_url=False)):
        key, message = _describe(problem, root, prefix)
        is_missing = message.startswith(_REQUIRED)
        # A missing key has no line; its group has.
        where = place(key.rpartition(".")[0] if is_missing else key)
        note = f" ({where})" if where else ""
        # A group of choices is refused once for each choice.
        found.setdefault(key, shorten(f"{shown(key, 200)}: {message}{note}"))
    messages = list(found.values())
    left = len(messages) - MAX_PROBLEMS
    if left > 0:
        more = "one more problem" if left == 1 else f"{left} more problems"
        messages[MAX_PROBLEMS:] = [f"and {more}; mend these first"]
    return "\n".join(messages)


def _without_copies(problems: Sequence[Any]) -> list[Any]:
    """Leave out the problems of copies of shared values, whose owners have the same problem."""
    own = [each for each in problems if not (len(each["loc"]) > 1 and is_copy(*each["loc"][:2]))]
    return own or list(problems)


def _describe(problem: Any, root: type[Section], prefix: str) -> tuple[str, str]:
    """Return the dotted key of a problem, and what is wrong."""
    location = [part for part in problem["loc"] if part != "[key]"]
    is_key = "[key]" in problem["loc"]
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        if not location:
            key, _, message = message.partition(": ")
            return _joined(prefix, [key]), message
        return _joined(prefix, location), message
    above = kind_of(root, location[:-1]) if location else None
    if problem["type"] == "extra_forbidden" or is_key:
        return _joined(prefix, location), _unknown_key(root, location, above, prefix)
    is_item = bool(location) and isinstance(location[-1], int)
    if problem["type"] == "missing" and not is_item:
        kind = kind_of(root, location)
        return _joined(prefix, location), f"{_REQUIRED}: {kind.words() if kind else 'a value'}"
    if problem["type"] == "missing":
        # An item that a list of fixed length lacks: the list is wrong, which is the input.
        location = location[:-1]
    location, kind = _last_known(root, location)
    key = _joined(prefix, location)
    return key, _wrong_value(kind, problem["input"], key)


def _joined(prefix: str, location: Sequence[str | int]) -> str:
    return ".".join(map(str, [prefix, *location] if prefix else location))


def _last_known(root: type[Section], location: list[Any]) -> tuple[list[Any], Kind]:
    """Cut off what pydantic adds to a location to name one of several types."""
    for length in range(len(location), 0, -1):
        if kind := kind_of(root, location[:length]):
            return location[:length], kind
    return [], Kind(root)


def _unknown_key(root: type[Section], location: list[Any], above: Kind | None, prefix: str) -> str:
    key, last = _joined(prefix, location), str(location[-1])
    kinds = [arm.annotation for arm in above.arms()] if above else []
    section = next((kind for kind in kinds if isinstance(kind, type)), None)
    if section and issubclass(section, Section):
        name = str(location[-2]) if location[1:] else (prefix.rpartition(".")[2] or None)
        known = settable(section, name)
    else:
        known = _names(above)
    if "." in last and kind_of(root, last.split(".")):
        first, _, rest = last.partition(".")
        return f"unknown key; in a file, write {shown(rest)} as a key of the group {first}"
    if last.partition(":")[0] in known:
        return f"unknown key; put a space behind the colon: {shown(last.replace(':', ': ', 1))}"
    if root is not RunConfig and not prefix:
        # A file of another kind, whose keys `longred config` does not have.
        own = difflib.get_close_matches(last, known, n=2)
        alike = f"did you mean {' or '.join(own)}?"
        return f"unknown key; {alike if own else 'known keys: ' + ', '.join(known)}"
    near = nearest_keys(key, known)
    group = key.rpartition(".")[0]
    if near and near[0].endswith("batch_tokens") and last.endswith("batch_size"):
        return f"unknown key; did you mean {' or '.join(near)}? It counts tokens, not rows"
    advice = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known)}"
    if near and group and known and not any(each.startswith(f"{group}.") for each in near):
        advice += f" Keys of {group}: `longred config {group}`"
    elif not near:
        advice += f"; see `longred config{f' {group}' if group and known else ''}`"
    return f"unknown key; {advice}"


def _names(above: Kind | None) -> list[str]:
    """Return the keys of a group with fixed names, such as the buckets."""
    for arm in above.arms() if above else ():
        if getattr(arm.annotation, "__origin__", None) is dict:
            return Kind(arm.annotation.__args__[0]).choices()
    return []


def _wrong_value(kind: Kind, value: Any, key: str) -> str:
    """Return what a value must be, what it is, and how to write what was probably meant."""
    hint = _hint(kind, value)
    groups = [arm.annotation for arm in kind.arms() if isinstance(arm.annotation, type)]
    names = [name for each in groups if issubclass(each, Section) for name in settable(each, key)]
    if names and not isinstance(value, Mapping) and not key.rpartition(".")[2].isdecimal():
        hint = hint or f"set one of its keys, such as {key}.{names[0]}"
    return f"must be {kind.words()}, got {shown(value)}" + (f"; {hint}" if hint else "")


def _hint(kind: Kind, value: Any) -> str:
    types = {getattr(arm.annotation, "__origin__", arm.annotation) for arm in kind.arms()}
    if isinstance(value, str):
        near = nearest(value, kind.choices())
        if value and any(_is_plain_list(arm) for arm in kind.arms()):
            return f"write [{near[0] if near else shown(value)}]"
        if near:
            return f"did you mean {' or '.join(near)}?"
        if types & {int, float}:
            return number_hint(value)
    elif types & {list, tuple} and isinstance(value, Mapping):
        return "give a list in brackets: […]"
    elif types == {str} and isinstance(value, Mapping | list):
        return "put text with such characters in quotes"
    return ""


def _is_plain_list(kind: Kind) -> bool:
    """Return whether it is a list of any length whose items are plain values."""
    items: tuple[Any, ...] = getattr(kind.annotation, "__args__", ())
    origin = getattr(kind.annotation, "__origin__", None)
    is_open = origin is list or (origin is tuple and Ellipsis in items)
    return is_open and not (isinstance(items[0], type) and issubclass(items[0], Section))


def nearest(value: str, choices: Sequence[str]) -> list[str]:
    """Return up to two choices that a wrong name may have meant, best first, else none."""
    text = value[:60].lower().replace("_", "-").strip()
    folded = {choice.lower().replace("_", "-"): choice for choice in choices}
    if text in folded:
        return [folded[text]]
    near = difflib.get_close_matches(text, folded, n=2)
    near = near or [each for each in folded if text and each.startswith(text)][:2]
    return [folded[each] for each in near]


def number_hint(text: str) -> str:
    """Return how to write a number that was written in another form, or nothing."""
    if re.fullmatch(r"[+-]?\.?(nan|inf|infinity)", text[:20].lower()):
        return "give a finite number"
    if _COMMAS.match(text):
        return f"write {text.replace(',', '')}"
    if _EXPONENT.match(text) and float(text).is_integer():
        return f"write {float(text):.0f}"
    if unit := _NUMBER.match(text):
        return f"write {float(unit[1]) * _UNITS[unit[2].lower()]:.0f}"
    if text.count(":") == 1 and text.replace(":", "").isdecimal():
        return "write it without a colon"
    return ""
