"""Loss spikes: what is told of a loss that leaps up, and when a training ends for them."""

import logging
import math
from collections.abc import Mapping
from statistics import median
from typing import Any

log = logging.getLogger(__name__)

WINDOW = 100
"""Losses before a step that it is judged by."""
MIN_LOSSES = 20
"""Fewer say nothing about how far losses usually lie apart."""
LEAST_DEVIATION = 1e-3
"""Part of the median that is taken for the deviation where losses hardly differ at all."""


class SpikeGuard:
    """Judges every step's loss by the `WINDOW` before it.

    A spike lies more than `spike_mads` median absolute deviations above their median. Nothing is
    done about one: gradients are clipped, and skipping data is for the user to choose.

    Args:
        spike_mads: deviations from which on a loss is a spike.
        halt_after: spikes in a row that end the training; 0 for never.
    """

    def __init__(self, *, spike_mads: float, halt_after: int) -> None:
        self.spike_mads = spike_mads
        self.halt_after = halt_after
        self._losses: list[float] = []
        self._in_a_row = 0

    def observe(self, step: int, loss: float) -> float | None:
        """Take a step's finite loss; return its deviations above the median where it is a spike."""
        deviations, count = self._deviations(loss), len(self._losses)
        self._losses = [*self._losses, loss][-WINDOW:]
        if deviations <= self.spike_mads:
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        log.warning(
            "step %d: the loss spiked to %.4g, %.1f median absolute deviations above the last %d",
            step,
            loss,
            deviations,
            count,
        )
        return deviations

    def problem(self, step: int, saved_step: int) -> str | None:
        """Return why the training has to end after a step and what to do, or None.

        Args:
            step: the last one that was observed.
            saved_step: that of the newest checkpoint.
        """
        if not self.halt_after or self._in_a_row < self.halt_after:
            return None
        first = step - self._in_a_row + 1
        return (
            f"step {step}: the loss has spiked in {self._in_a_row} steps in a row, from step "
            f"{first} on, to {self._losses[-1]:.4g}. The newest checkpoint is of step "
            f"{saved_step}, and the same command goes on from there to the same steps. Look at the "
            "losses in metrics.jsonl; train anew with a lower training.learning_rate or more "
            "training.warmup_steps, or go on regardless with training.halt_after_spikes=0"
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain JSON values."""
        return {"losses": list(self._losses), "in_a_row": self._in_a_row}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._losses, self._in_a_row = list(state["losses"]), int(state["in_a_row"])

    def _deviations(self, loss: float) -> float:
        if len(self._losses) < MIN_LOSSES:
            return -math.inf
        middle = median(self._losses)
        deviation = median(abs(value - middle) for value in self._losses)
        return (loss - middle) / max(deviation, LEAST_DEVIATION * abs(middle), 1e-30)
