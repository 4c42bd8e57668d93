"""Configurations of the models that packaged recipes name: costs need no hub, weights or data."""

import json
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from longred.recipes import RECIPES

SHAPES = RECIPES / "shapes"
"""Facts of each model's published `config.json`, in named as in the hub's cache."""


def named_config(path: str) -> PreTrainedConfig | None:
    """Return the configuration of a model by its name on the hub, or None for other models."""
    file = SHAPES / f"{path.replace('/', '--')}.json"
    if not file.is_file():
        return None
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config: PreTrainedConfig = AutoConfig.for_model(**values)
    return config
