"""One function per stage, from a config section and upstream artifacts to an artifact.

Only this folder knows both the configuration and the store; what it calls works on plain values
and folders, and is imported when a stage runs. Prefect tasks and the command line call the same
functions. Before the store asks to build an artifact, a stage reads only the digests of its inputs,
so that a dry run can identify what it would build.

`preflight` refuses what a later stage would, by `checks`; `pilot` measures the first steps of a
training.
"""

from longred.stages.data import prepare_data
from longred.stages.evaluation import REINDEXINGS, evaluate_model, freeze_samples
from longred.stages.model import extend_model, find_model
from longred.stages.profiling import profile_attention, select_layers
from longred.stages.report import write_report
from longred.stages.training import kept_students, train_student

__all__ = [
    "REINDEXINGS",
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
