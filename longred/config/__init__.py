"""What a run is made of: one frozen section per stage, read from a recipe and dotted overrides.

`section` is what they share, one module a section; `values` puts them together, `checks` refuses
what cannot work across them, `run` is both, `load` reads a recipe.
"""

from longred.config.data import DataConfig, SourceConfig
from longred.config.evaluation import EvaluationConfig, RulerConfig, ShortConfig
from longred.config.load import key_pattern, load_recipe, load_recorded, without_copies
from longred.config.model import AttentionConfig, ExtensionConfig, ModelConfig
from longred.config.outputs import ReportConfig, StoreConfig, TrackingConfig
from longred.config.profiling import ProfilingConfig, SelectionConfig
from longred.config.run import RunConfig
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
