"""What a training ran on: another one may change the last bits of its result."""

import dataclasses
import platform
from typing import Any

import torch

from longred.training.job import TrainingJob


def environment_of(device: torch.device, job: TrainingJob) -> dict[str, Any]:
    """Return device, hardware, threads, processes, torch's version and the choice of kernels."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type,
        "hardware": name,
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "attention_backend": job.attention_backend,
        "mlp_tile_tokens": job.mlp_tile_tokens,
        "compile": job.compile,
        **dataclasses.asdict(job.layout),
    }
