"""How busy the machine is while it trains, by MLflow's own measures and under their names."""

import logging
import time
from typing import Any

log = logging.getLogger(__name__)


class SystemMetrics:
    """Measures processor, memory, disk, network and, with nvidia-ml-py installed, GPUs.

    MLflow's own monitor logs by a thread that a server which is away holds up; here the caller
    logs.

    Args:
        seconds: the shortest time between two samples.
    """

    def __init__(self, seconds: float) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._seconds = seconds
        self._last = float("-inf")
        # MLflow leaves them untyped.
        kinds: tuple[Any, ...] = (CPUMonitor, DiskMonitor, NetworkMonitor)
        gpu: Any = GPUMonitor
        self._monitors: list[Any] = [kind() for kind in kinds]
        try:
            self._monitors.append(gpu())
        except (ImportError, RuntimeError) as error:
            log.debug("no GPU is measured: %s", error)

    def sample(self) -> dict[str, float]:
        """Return `system/<measure>` → value now; nothing where the last sample is too new."""
        if time.monotonic() - self._last < self._seconds:
            return {}
        self._last = time.monotonic()
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{k}": float(v) for k, v in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values
