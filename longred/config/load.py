"""Reads a recipe and overrides into a configuration, or says what is wrong with them."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from longred.config.run import COPIES, RunConfig
from longred.config.section import Section
from longred.errors import ConfigError
from longred.recipes import Recipe, read_recipe


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a packaged recipe or a YAML file and apply dotted overrides.

    Args:
        name_or_path: a recipe's name (`demo`) or the path of a YAML file.
        overrides: `section.key=value` strings; values are read as YAML.

    Raises:
        ConfigError: the recipe does not exist or cannot be read, a key is unknown, a value
            has the wrong type or cannot work; the message names the dotted key.
    """
    recipe = read_recipe(str(name_or_path), overrides)
    try:
        return RunConfig.model_validate(recipe.values)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_describe(problem, recipe) for problem in error.errors())
        ) from None


def _describe(problem: Any, recipe: Recipe) -> str:
    """Turn one validation problem into a message that names the dotted key and says what to do."""
    location = tuple(part for part in problem["loc"] if part != "[key]")
    key = ".".join(str(part) for part in location)
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not location:
        key, _, message = message.partition(": ")
    elif problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=3)
        advice = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known)}"
        message = f"unknown key; {advice}"
    elif problem["type"] == "missing":
        message = "is required"
    else:
        message = f"{message} (got {problem['input']!r})"
    place = f" ({recipe.path}:{recipe.lines[key]})" if key in recipe.lines else ""
    return f"{key}: {message}{place}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Return the keys allowed at a location of the configuration."""
    kind: Any = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        kind = next(
            (a for a in (annotation, *arguments) if isinstance(a, type) and issubclass(a, Section)),
            kind,
        )
    copies = {} if kind is RunConfig else COPIES
    return [
        name
        for name in kind.model_fields
        if name not in copies or copies[name].startswith(f"{location[-1]}.")
    ]
