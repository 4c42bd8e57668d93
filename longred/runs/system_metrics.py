"""Utilisation of the machine during training, with MLflow's own monitors and metric names."""

import logging
import time
from typing import Any

log = logging.getLogger(__name__)


class SystemMetrics:
    """Samples processor, memory, disk, network and, if nvidia-ml-py is installed, GPUs.

    MLflow's own monitor logs from a thread that an unreachable server blocks; here the caller logs.

    Args:
        seconds: minimum time between two samples.
    """

    def __init__(self, seconds: float) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._seconds = seconds
        self._last = float("-inf")
        self._monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        try:
            self._monitors.append(GPUMonitor())
        except (ImportError, RuntimeError) as error:
            log.debug("GPUs are not monitored: %s", error)

    def sample(self) -> dict[str, float]:
        """Return `system/<measure>` → value; empty if the last sample is too recent."""
        if time.monotonic() - self._last < self._seconds:
            return {}
        self._last = time.monotonic()
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{k}": float(v) for k, v in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values
