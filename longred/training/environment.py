"""What a training ran on: another one may change the last bits of its result."""

import dataclasses
import platform
from typing import Any

import torch

from longred.training.layout import Layout


def environment_of(device: torch.device, layout: Layout) -> dict[str, Any]:
    """Return device, hardware, CPU threads, processes and torch's version, as checkpoints do."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type,
        "hardware": name,
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **dataclasses.asdict(layout),
    }
