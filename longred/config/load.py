"""Turn a recipe and overrides into a `RunConfig`, or into messages about what is wrong."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from longred.config.messages import problems_in
from longred.config.run import RunConfig, is_copy
from longred.errors import ConfigError
from longred.recipes import Recipe, apply_override, read_recipe

REMOVED = {"evaluation": ("batch_size",)}
"""Section → runtime settings of earlier versions, which old runs have recorded."""


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a packaged recipe or a YAML file and apply dotted overrides.

    Args:
        name_or_path: a recipe's name (`demo`) or the path of a YAML file.
        overrides: `section.key=value` strings; values are read as YAML.

    Raises:
        ConfigError: the recipe does not exist or cannot be read, a key is unknown, a value
            has the wrong type or cannot work; the message names the dotted key.
    """
    return _validate(read_recipe(str(name_or_path), overrides))


def load_recorded(config: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration recorded by a run, with dotted overrides applied.

    Args:
        config: all settings of a run, including the copies of shared ones in its sections, and
            perhaps settings in `REMOVED`, which are left out.
        overrides: `section.key=value` strings; values are read as YAML.

    Raises:
        ConfigError: as `load_recipe` does.
    """
    values = copy.deepcopy(without_copies(config))
    for section, keys in REMOVED.items():
        if isinstance(settings := values.get(section), dict):
            for key in keys:
                settings.pop(key, None)
    for override in overrides:
        apply_override(values, override)
    return _validate(Recipe("the recorded settings", values))


def without_copies(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run without the copies of shared ones in its sections."""
    return {
        name: {key: value for key, value in section.items() if not is_copy(name, key)}
        if isinstance(section, Mapping)
        else section
        for name, section in config.items()
    }


def _validate(recipe: Recipe) -> RunConfig:
    try:
        return RunConfig.model_validate(recipe.values)
    except ValidationError as error:
        raise ConfigError(problems_in(error, place=recipe.place)) from None
