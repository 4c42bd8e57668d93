"""One Prefect task per stage, with the parameters of the stage function and its name in a run."""

from longred import stages
from tasks.shards import map_groups
from tasks.stage import stage_task

find_model = stage_task(stages.find_model, "model")
prepare_data = stage_task(stages.prepare_data, "data{at}", map_groups=map_groups)
extend_model = stage_task(stages.extend_model, "extension{at}")
profile_attention = stage_task(stages.profile_attention, "profiling{at}")
select_layers = stage_task(stages.select_layers, "selection{at}")
train_student = stage_task(stages.train_student, "training/{method}{at}")
freeze_samples = stage_task(stages.freeze_samples, "evaluation/samples")
evaluate_model = stage_task(stages.evaluate_model, "evaluation/{name}")
write_report = stage_task(stages.write_report, "report")
