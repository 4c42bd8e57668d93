"""The packaged recipes, and reading a recipe file with dotted overrides into plain values."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from longred.errors import ConfigError

RECIPES = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe before validation.

    Attributes:
        path: the YAML file.
        values: its content with the overrides applied.
        lines: line (from 1) of every dotted key that comes from the file, not from an override.
    """

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[str, int]


def read_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a packaged recipe or a YAML file and apply dotted overrides.

    Raises:
        ConfigError: the recipe does not exist, is not YAML, or an override is malformed.
    """
    path = _recipe_path(name)
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}{line}: is not valid YAML ({getattr(error, 'problem', error)})"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, see the packaged recipes")
    lines = _key_lines(text)
    for override in overrides:
        apply_override(values, override)
        lines.pop(override.partition("=")[0], None)
    return Recipe(path, values, lines)


def names() -> list[str]:
    """Return the names of the packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _recipe_path(name: str) -> Path:
    packaged = RECIPES / f"{name}.yaml"
    if "/" not in name and packaged.is_file():
        return packaged
    if Path(name).is_file():
        return Path(name)
    known = names()
    near = difflib.get_close_matches(name, known, n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(f"{name}: no such recipe or file (recipes: {', '.join(known)}){hint}")


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one dotted key of nested settings, in place.

    Raises:
        ConfigError: the override is malformed, or its key leads through a value.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"{override}: an override has the form section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {text!r} is not a valid YAML value") from error
    *parents, last = key.split(".")
    node: Any = values
    for part in parents:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = node[_item(node, part, key)]
        if not isinstance(node, dict | list):
            raise ConfigError(f"{key}: {part} holds a value, not a group of settings")
    node[_item(node, last, key)] = value


def _item(node: Mapping[str, Any] | Sequence[Any], part: str, key: str) -> Any:
    """Return the key or index of one part of a dotted key."""
    if isinstance(node, Mapping):
        return part
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(f"{key}: {part} is not one of the {len(node)} items, counted from 0")
    return int(part)


def _key_lines(text: str) -> dict[str, int]:
    """Return the line (from 1) of every dotted key of a YAML text."""
    lines: dict[str, int] = {}

    def visit(node: yaml.Node | None, prefix: str) -> None:
        items: list[tuple[Any, yaml.Node, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            items = [(key.value, key, value) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            items = [(number, item, item) for number, item in enumerate(node.value)]
        for name, start, value in items:
            lines[f"{prefix}{name}"] = start.start_mark.line + 1
            visit(value, f"{prefix}{name}.")

    visit(yaml.compose(text, Loader=yaml.SafeLoader), "")
    return lines
