"""Identify the machine: device, driver, libraries, and whether CUDA works in this process."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from gpu.child import Check
from gpu.sizes import scale_of


def measure(check: Check) -> None:
    """Write one line with the facts that results are named by; `problem` is empty if all works."""
    scale = scale_of(check)
    found: dict[str, Any] = {
        "device": f"cpu {platform.machine()}",
        "model": scale.model,
        "length": scale.length,
        "versions": versions(),
        "has_cuda_build": torch.version.cuda is not None,
        "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""),
        "problem": "",
    }
    if not check.tiny:
        try:
            torch.ones(1, device="cuda").sum().item()
            found["device"] = torch.cuda.get_device_name()
        except (RuntimeError, AssertionError) as error:
            found["problem"] = f"torch finds no GPU here ({error})"
    check.line("facts", settings={}, measured=found)


def versions() -> dict[str, str]:
    """Return the software versions that can affect a measurement."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("triton", "transformers", "torchao", "flash-attn"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["driver"] = driver()
    return found


def driver() -> str:
    """Return the version of NVIDIA's driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if shutil.which(query[0]):
        asked = subprocess.run(query, capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return asked.stdout.split("\n")[0].strip()
    version = Path("/proc/driver/nvidia/version")
    return version.read_text(encoding="ascii").split("\n")[0] if version.is_file() else "unknown"
