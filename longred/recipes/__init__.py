"""The packaged recipes, and reading a recipe file with dotted overrides into plain values.

Relative paths in a recipe or an override (models, text, evaluation files, the store) start in the
working directory of the command, wherever the recipe's file lies; for flow runs of a deployment
that is the worker's. `strict` has the YAML that is read.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longred.errors import ConfigError, shorten, shown, where_paths_start
from longred.recipes.strict import MAX_BYTES, MAX_DEPTH, read_value, read_yaml
from longred.recipes.text import sources_of

RECIPES = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe before validation.

    Attributes:
        source: what messages call it: its file, or the run that recorded it.
        values: its content with the overrides applied.
        lines: line (from 1) of every dotted key that comes from the file, not from an override.
    """

    source: str
    values: Mapping[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)

    def place(self, key: str) -> str:
        """Return file and line of a dotted key, or nothing; for an empty key, the file."""
        if not key:
            return self.source
        return f"{self.source}:{self.lines[key]}" if key in self.lines else ""


def read_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a packaged recipe or a YAML file and apply dotted overrides.

    Raises:
        ConfigError: the recipe does not exist, is not YAML, has a key twice, an anchor, a tag or
            another thing that no recipe needs, or an override is malformed.
    """
    path = _recipe_path(name)
    values, lines = read_yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        holds = "a list" if isinstance(values, list) else "text" if values else "nothing"
        raise ConfigError(
            f"{path}: a recipe is a mapping of sections, see the packaged recipes; this file holds "
            f"{holds}"
        )
    for override in overrides:
        key = apply_override(values, override)
        for each in [line for line in lines if line == key or line.startswith(f"{key}.")]:
            del lines[each]
    return Recipe(str(path), values, lines)


def read_text(path: Path) -> str:
    """Return the text of a recipe's file.

    Raises:
        ConfigError: it is too large, not UTF-8 or cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_BYTES:,} bytes; this is no recipe")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not text in UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def names() -> list[str]:
    """Return the names of the packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _recipe_path(name: str) -> Path:
    known = names()
    if name in known:
        return RECIPES / f"{name}.yaml"
    try:
        if Path(name).is_file():
            return Path(name)
        is_folder = Path(name).is_dir()
    except OSError as error:
        raise ConfigError(f"{shown(name)}: is not a recipe or file ({error.strerror})") from error
    if is_folder and name:
        raise ConfigError(f"{shown(name, 200)}: is a folder; name the recipe's file in it")
    here = sorted(path.name for path in Path().glob("*.[yj][as]*"))
    if re.match(r"[\w.]+=", name):
        raise ConfigError(
            f"{shown(name, 200)}: is a change; the recipe stands before it, as in "
            f"`longred run demo {shown(name, 200)}`"
        )
    near = difflib.get_close_matches(name[:100], [*known, *here], n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    recipes = ", ".join(known)
    raise ConfigError(
        shorten(
            f"{shown(name, 200)}: no such recipe or file{where_paths_start(name)}; "
            f"recipes: {recipes}{hint}"
        )
    )


def apply_override(values: dict[str, Any], override: str) -> str:
    """Set one dotted key of nested settings, in place; return the key.

    `data=TEXT` sets `data.sources` to a file, folder, glob or URL, or to `local`.

    Raises:
        ConfigError: the override is malformed, or its key leads through a value.
    """
    key, separator, text = override.partition("=")
    key = key.strip()
    what = shown(key, 200)
    bare = key.lstrip("-")
    if key != bare:
        value = text if separator else "VALUE"
        raise ConfigError(
            f"{what}: settings are written without dashes before them: {shown(bare)}={shown(value)}"
        )
    if not separator or not key:
        is_key = re.fullmatch(r"[\w.]{1,100}", key) and not separator
        if re.search(r"\.(ya?ml|json)\Z", key):
            raise ConfigError(
                f"{what}: is not a change of the form section.key=value; the recipe stands first, "
                f"as in `longred run {what}`"
            )
        form = f"{key}=VALUE" if is_key else "section.key=value"
        raise ConfigError(f"{shown(override, 200)}: an override has the form {form}")
    if "/" in key:
        dotted = key.replace("/", ".")
        raise ConfigError(f"{what}: groups and keys are joined by dots; write {shown(dotted, 200)}")
    *parents, last = key.split(".")
    if len(parents) >= MAX_DEPTH or not all((*parents, last)):
        raise ConfigError(f"{what}: is not a dotted key of the form section.key")
    value = read_value(text, key)
    if key == "data" and isinstance(value, str):
        # Only the text changes: how much of it is read, and how, stays as the recipe says.
        return apply_override(values, f"data.sources={json.dumps(sources_of(value))}")
    node: Any = values
    for number, part in enumerate(parents):
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = node[_item(node, part, what)]
        if not isinstance(node, dict | list):
            above = ".".join(parents[: number + 1])
            raise ConfigError(
                f"{what}: {shown(above, 200)} holds a value ({shown(node)}), not a group of "
                "settings"
            )
    node[_item(node, last, what)] = value
    return key


def _item(node: Mapping[str, Any] | Sequence[Any], part: str, key: str) -> Any:
    """Return the key or index of one part of a dotted key."""
    if isinstance(node, Mapping):
        return part
    # Longer digits are no index, and other scripts' digits are none that `int` reads.
    if not (part.isascii() and part.isdecimal() and len(part) < 9) or int(part) >= len(node):
        if not node:
            raise ConfigError(f"{key}: the list has no items; give the whole list: […]")
        last = f"0 to {len(node) - 1}" if len(node) > 1 else "0"
        raise ConfigError(
            f"{key}: {shown(part)} is not one of the list's items, {last}; they are counted from 0"
        )
    return int(part)
