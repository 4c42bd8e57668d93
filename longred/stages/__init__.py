"""One function a stage: its config section and upstream artifacts in, an artifact out.

The only room that knows both the configuration and the store; everything it calls works on plain
values and folders. A Prefect task and a stage run from the command line call the same function.
Nothing of an input but its digest is read before the store asks for the artifact to be made, so
that a store can also tell what would be made.
"""

from longred.stages.data import prepare_data
from longred.stages.evaluation import evaluate_model, freeze_samples
from longred.stages.model import extend_model, find_model
from longred.stages.profiling import profile_attention, select_layers
from longred.stages.report import write_report
from longred.stages.training import kept_students, train_student
from longred.stages.versions import VERSIONS

__all__ = [
    "VERSIONS",
    "evaluate_model",
    "extend_model",
    "find_model",
    "freeze_samples",
    "kept_students",
    "prepare_data",
    "profile_attention",
    "select_layers",
    "train_student",
    "write_report",
]
