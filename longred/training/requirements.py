"""What a training needs of its model and of its machine, known before anything is loaded."""

import torch
from transformers import PreTrainedConfig

from longred.errors import ConfigError
from longred.method.job import TrainingJob
from longred.models.architectures import sequence_problem
from longred.training import adapters
from longred.training.layers.compiling import check_compiler
from longred.training.layers.fp8 import check_fp8
from longred.training.optimizer import adamw8bit_class


def check_model(job: TrainingJob, config: PreTrainedConfig) -> None:
    """Refuse what the extended model has no place for.

    Args:
        job: the training.
        config: of the extended model.

    Raises:
        ConfigError: a distilled layer or an adapter's target does not exist, or rows cannot be
            divided over so many processes.
    """
    problems = [sequence_problem(config, job.layout.sequence_parallel)]
    for bucket, num_rows in job.rows.items():
        problems.append(job.layout.rows_problem(bucket, num_rows, job.target_window))
    for problem in filter(None, problems):
        raise ConfigError(problem)
    num_layers = config.num_hidden_layers
    wrong = [layer for layer in job.distill_layers if not 1 <= layer <= num_layers]
    if wrong:
        raise ConfigError(
            f"training.distill_layers: {wrong} are not in 1 to {num_layers}, the model's "
            "hidden states; choose others in selection.layers"
        )
    if job.recipe.trains_adapters:
        adapters.check_places(job.lora, config)


def check_machine(job: TrainingJob, device: torch.device) -> None:
    """Refuse what this machine cannot do.

    Raises:
        PreflightError: a package, a compiler or a GPU of the right kind is missing.
    """
    if job.fp8:
        check_fp8(device)
        if device.type == "cuda":
            check_compiler(device, "training.fp8")
    if job.compile:
        check_compiler(device, "training.compile")
    if job.optimizer == "adamw8bit":
        adamw8bit_class()
