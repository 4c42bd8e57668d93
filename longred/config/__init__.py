"""The settings of a run: one frozen section per stage, read from a recipe and dotted overrides.

`section` has the base class; `model`, `data`, `training` and `evaluation` hold the sections of the
stages. `run` puts them together and copies shared values, `checks` has the rules across sections,
`load` turns a recipe into a `RunConfig`; `messages` says in plain words what is wrong with one, by
what `keys` knows of every dotted key; `describe` lists what can be set. What a recipe and a
training job share stands once, in `longred.method.job`.
"""

from longred.config.data import DataConfig as DataConfig
from longred.config.data import SourceConfig as SourceConfig
from longred.config.evaluation import EvaluationConfig as EvaluationConfig
from longred.config.load import load_recipe as load_recipe
from longred.config.load import load_recorded as load_recorded
from longred.config.load import without_copies as without_copies
from longred.config.model import ExtensionConfig as ExtensionConfig
from longred.config.model import ModelConfig as ModelConfig
from longred.config.model import ProfilingConfig as ProfilingConfig
from longred.config.model import SelectionConfig as SelectionConfig
from longred.config.run import ReportConfig as ReportConfig
from longred.config.run import RunConfig as RunConfig
from longred.config.run import StoreConfig as StoreConfig
from longred.config.run import TrackingConfig as TrackingConfig
from longred.config.training import TrainingConfig as TrainingConfig
