"""What a training runs on, set up before it and told after it: it may change the last bits."""

import dataclasses
import os
import platform
from typing import Any

import torch

from longred.method.job import TrainingJob


def prepare(job: TrainingJob) -> None:
    """Set up torch for a training in this process, before anything is put on a GPU."""
    grow_segments()
    if job.num_threads:
        torch.set_num_threads(job.num_threads)
    if job.deterministic:
        # cuBLAS adds in one order only with a workspace of its own for every stream.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Memory that is written anyway needs no pattern to find reads of it.
        settings: Any = torch.utils.deterministic
        settings.fill_uninitialized_memory = False
        torch.use_deterministic_algorithms(True)
    torch.manual_seed(job.seed)


def grow_segments() -> None:
    """Let memory of a GPU be taken in segments that grow; before the first call to CUDA.

    Micro-batches of three shapes would otherwise leave holes that none of the others fits into.
    What the environment says already stays.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


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
        "fused": job.fused,
        "compile": job.compile,
        "deterministic": job.deterministic,
        **dataclasses.asdict(job.layout),
    }
