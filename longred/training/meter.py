"""What a trainer says of its machine: how well it is used, how full it is, for how long."""

import torch

from longred.cost.calibrate import fastest_product
from longred.cost.flops import step_flops
from longred.cost.machine import peak_bytes
from longred.cost.shape import ModelShape
from longred.cost.speeds import key_of, known
from longred.method.job import TrainingJob

MACHINE_METRICS = frozenset(
    f"train/{name}" for name in ("tokens_per_second", "mfu", "peak_memory_bytes", "eta_seconds")
)
"""Metrics that say nothing of the result, and differ from one run to the next."""


class Meter:
    """Turns the seconds of a step into metrics.

    Args:
        shape: of the model.
        job: the training.
        lengths: tokens of a row of each bucket.
        device: where it runs.
    """

    def __init__(
        self, shape: ModelShape, job: TrainingJob, lengths: dict[str, int], device: torch.device
    ) -> None:
        self.num_steps = job.num_steps
        self.device = device
        self.step_flops = step_flops(shape, job, lengths)
        self.step_tokens = sum(count * lengths[bucket] for bucket, count in job.rows.items())
        self.peak = _peak(device, job.dtype) * job.layout.num_processes

    def metrics(self, step: int, seconds: float, all_seconds: float) -> dict[str, float]:
        """Return the metrics of a step.

        MFU counts causal attention and nothing that is computed again, as a share of the GPU's
        dense peak, or of the fastest product that was measured where that is not known.

        Args:
            step: its number.
            seconds: its own.
            all_seconds: of all steps up to it.
        """
        return {
            "train/tokens_per_second": self.step_tokens / seconds,
            "train/mfu": self.step_flops / seconds / self.peak,
            "train/peak_memory_bytes": peak_bytes(self.device),
            "train/eta_seconds": (self.num_steps - step) * all_seconds / step,
        }


def _peak(device: torch.device, dtype: str) -> float:
    key = key_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if key is not None:
        return known(key, dtype=dtype).peak_flops
    return fastest_product(device, getattr(torch, dtype))
