"""The packaged recipes, and how a recipe file and dotted overrides are read into plain values."""

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
    """A recipe as it was read, before any value is checked.

    Attributes:
        path: the YAML file.
        values: its content with the overrides applied.
        lines: line (from 1) of every dotted key that the file, not an override, has set.
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


def _recipe_path(name: str) -> Path:
    packaged = RECIPES / f"{name}.yaml"
    if "/" not in name and packaged.is_file():
        return packaged
    if Path(name).is_file():
        return Path(name)
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
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
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(
                    f"{key}: {part} is not one of the {len(node)} items, counted from 0"
                )
            node = node[int(part)]
            continue
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict | list):
            raise ConfigError(f"{key}: {part} holds a value, not a group of settings")
    if isinstance(node, list):
        if not last.isdigit() or int(last) >= len(node):
            raise ConfigError(f"{key}: {last} is not one of the {len(node)} items, counted from 0")
        node[int(last)] = value
    else:
        node[last] = value


def _key_lines(text: str) -> dict[str, int]:
    """Return the line (from 1) of every dotted key of a YAML text."""
    lines: dict[str, int] = {}

    def visit(node: yaml.Node | None, prefix: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[".".join((*prefix, str(key.value)))] = key.start_mark.line + 1
                visit(value, (*prefix, str(key.value)))
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                lines[".".join((*prefix, str(number)))] = item.start_mark.line + 1
                visit(item, (*prefix, str(number)))

    visit(yaml.compose(text, Loader=yaml.SafeLoader), ())
    return lines
