"""The machine of a training: torch's settings, what must be present, and how well it is used."""

import dataclasses
import math
import os
import platform
from typing import Any

import torch
from transformers import PreTrainedConfig

from longred.cost.fit import step_and_peak_flops
from longred.cost.machine import peak_bytes
from longred.cost.shape import ModelShape
from longred.errors import ConfigError, PreflightError
from longred.method.job import TrainingJob
from longred.models.architectures import sequence_problem
from longred.training import adapters
from longred.training.layers.compiling import check_compiler
from longred.training.layers.fp8 import check_fp8
from longred.training.optimizer import adamw8bit_class

MACHINE_METRICS = frozenset(
    f"train/{name}" for name in ("tokens_per_second", "mfu", "peak_memory_bytes", "eta_seconds")
)
"""Metrics that do not describe the result and differ from run to run."""


def prepare(job: TrainingJob) -> None:
    """Configure torch in this process; call it before the first use of a GPU."""
    grow_segments()
    if job.num_threads:
        torch.set_num_threads(job.num_threads)
    if job.deterministic:
        # cuBLAS sums in a fixed order only with its own workspace for every stream.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Filling new memory only serves to find reads of uninitialised values.
        settings: Any = torch.utils.deterministic
        settings.fill_uninitialized_memory = False
        torch.use_deterministic_algorithms(True)
    torch.manual_seed(job.seed)


def grow_segments() -> None:
    """Use expandable segments of GPU memory, unless the environment sets the allocator.

    Micro-batches of three shapes would otherwise leave gaps that fit none of the others. Must run
    before the first CUDA call.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def environment_of(device: torch.device, job: TrainingJob) -> dict[str, Any]:
    """Return what can change the last bits of a result: hardware, torch, kernels, layout."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    settings = ("attention_backend", "mlp_tile_tokens", "fused", "compile", "deterministic")
    return {
        "device": device.type,
        "hardware": name,
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{name: getattr(job, name) for name in settings},
        **dataclasses.asdict(job.layout),
    }


def check_model(job: TrainingJob, config: PreTrainedConfig) -> None:
    """Check that the job fits the model, before weights are loaded.

    Args:
        job: the training.
        config: of the extended model.

    Raises:
        ConfigError: a distilled layer or an adapter target does not exist, or rows cannot be
            divided over the processes.
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
        adapters.check_targets(job.lora, config)


def check_machine(job: TrainingJob, device: torch.device) -> None:
    """Check that this machine has what the job's settings need.

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


def check_gpus(num_here: int) -> None:
    """Check that this machine has a GPU for each of its processes.

    Raises:
        PreflightError: it has fewer.
    """
    if num_here > torch.cuda.device_count():
        raise PreflightError(
            f"training.parallel.num_processes: {num_here} processes on a machine with "
            f"{torch.cuda.device_count()} GPUs; start one for each GPU"
        )


class Meter:
    """Computes the machine metrics of a step from its duration.

    Args:
        shape: of the model.
        job: the training.
        lengths: tokens per row of each bucket.
        device: where it runs.
    """

    def __init__(
        self, shape: ModelShape, job: TrainingJob, lengths: dict[str, int], device: torch.device
    ) -> None:
        self.num_steps = job.num_steps
        self.device = device
        self.step_tokens = sum(math.prod(job.seen_rows(*item)) for item in lengths.items())
        self.step_flops, peak = step_and_peak_flops(shape, job, lengths, device)
        self.peak = peak * job.layout.num_processes

    def metrics(self, step: int, seconds: float, all_seconds: float) -> dict[str, float]:
        """Return the metrics of a step.

        Args:
            step: its number.
            seconds: duration of the step.
            all_seconds: duration of all steps up to this one.
        """
        return {
            "train/tokens_per_second": self.step_tokens / seconds,
            "train/mfu": self.step_flops / seconds / self.peak,
            "train/peak_memory_bytes": peak_bytes(self.device),
            "train/eta_seconds": (self.num_steps - step) * all_seconds / step,
        }
