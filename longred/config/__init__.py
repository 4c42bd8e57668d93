"""The settings of a run: one frozen section per stage, read from a recipe and dotted overrides.

`section` has the base class; `model`, `data`, `training` and `evaluation` hold the sections of the
stages. `run` puts them together and copies shared values, `checks` has the rules across sections,
`load` turns a recipe into a `RunConfig`. What a recipe and a training job share stands once, in
`longred.method.job`.
"""

from longred.config.data import DataConfig, SourceConfig
from longred.config.evaluation import EvaluationConfig, RulerConfig, ShortConfig
from longred.config.load import key_pattern, load_recipe, load_recorded, without_copies
from longred.config.model import (
    AttentionConfig,
    ExtensionConfig,
    ModelConfig,
    ProfilingConfig,
    SelectionConfig,
)
from longred.config.run import ReportConfig, RunConfig, StoreConfig, TrackingConfig
from longred.config.training import TrainingConfig

__all__ = [
    "AttentionConfig",
    "DataConfig",
    "EvaluationConfig",
    "ExtensionConfig",
    "ModelConfig",
    "ProfilingConfig",
    "ReportConfig",
    "RulerConfig",
    "RunConfig",
    "SelectionConfig",
    "ShortConfig",
    "SourceConfig",
    "StoreConfig",
    "TrackingConfig",
    "TrainingConfig",
    "key_pattern",
    "load_recipe",
    "load_recorded",
    "without_copies",
]
