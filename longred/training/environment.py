"""What a training ran on: another one may change the last bits of its result."""

import platform
from typing import Any

import torch


def environment_of(device: torch.device) -> dict[str, Any]:
    """Return device, hardware, CPU threads and torch's version, as checkpoints record them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type,
        "hardware": name,
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
