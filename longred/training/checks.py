"""Numerical checks: fp8 accuracy before the first step, loss spikes, and the source of a NaN."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from longred.errors import PreflightError
from longred.method.methods import Term
from longred.training.layers.fp8 import without_fp8
from longred.training.optimizer import named_weights
from longred.training.sharding import local
from longred.training.step import MicroBatch, Objectives
from longred.training.world import World

log = logging.getLogger(__name__)

HIDDEN_BOUND = 0.1
"""Largest allowed difference of the last hidden states, relative to their norm."""
LOSS_BOUND = 0.01
"""Largest allowed relative difference of a loss, on top of half the square of `HIDDEN_BOUND`: the
cosine distance between such states, below which a distillation loss cannot fall."""

LOGIT_FACTOR = 20.0
"""How many times larger the KL of predictions from such states may be than their cosine distance.
Measured with random errors of 2 to 10 %: 18 times in SmolLM2-135M, 4 times in the demo's model."""

WINDOW = 100
"""Number of previous losses that a loss is compared with."""
MIN_LOSSES = 20
"""Below this number the spread of the losses is unknown."""
LEAST_DEVIATION = 1e-3
"""Lower bound of the deviation, relative to the median, for losses that hardly differ."""


def check_fp8_quality(objectives: Objectives, batches: Iterable[MicroBatch]) -> None:
    """Compare hidden states and losses in fp8 with those in the compute type.

    Args:
        objectives: of a student that computes in fp8.
        batches: micro-batches of a step; the first of each bucket is used.

    Raises:
        PreflightError: they differ by more than the bounds; the message gives both.
    """
    first = {batch.bucket: batch for batch in reversed(list(batches))}
    # Run all of them before raising: with sharded weights every process takes part in every pass.
    problems = [_fp8_problem(objectives, batch) for batch in first.values()]
    for problem in filter(None, problems):
        raise PreflightError(f"training.fp8: {problem}; set it to false")


def _fp8_problem(objectives: Objectives, batch: MicroBatch) -> str | None:
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        with without_fp8(objectives.student):
            exact_BTD, exact = _run(objectives, batch)
        rounded_BTD, rounded = _run(objectives, batch)
    error = float((rounded_BTD - exact_BTD).norm() / exact_BTD.norm())
    log.info("fp8: hidden states of the %s bucket move by %.2f %%", batch.bucket, 100 * error)
    if not error <= HIDDEN_BOUND:
        return (
            f"moves the hidden states of the {batch.bucket} bucket by {error:.1%} of their norm, "
            f"and {HIDDEN_BOUND:.0%} is allowed"
        )
    for term, loss in exact.items():
        factor = LOGIT_FACTOR if term.objective == "logit_distill" else 1.0
        allowed = LOSS_BOUND * abs(loss) + factor * HIDDEN_BOUND**2 / 2
        if not abs(rounded[term] - loss) <= allowed:
            return (
                f"moves the {term.objective} loss of the {batch.bucket} bucket from {loss:.5g} to "
                f"{rounded[term]:.5g}, and {allowed:.2g} is allowed"
            )
    return None


def _run(objectives: Objectives, batch: MicroBatch) -> tuple[Tensor, dict[Term, float]]:
    """Return the student's last hidden states in float32, and the losses."""
    states: list[Tensor] = []
    base: Any = objectives.student.base_model
    hook = base.register_forward_hook(
        lambda module, args, output: states.append(output.last_hidden_state.float())
    )
    try:
        losses = objectives.losses(batch)
    finally:
        hook.remove()
    return states[0], {term: float(loss) for term, loss in losses.items()}


class SpikeGuard:
    """Compares the loss of every step with the `WINDOW` losses before it.

    A spike lies more than `spike_mads` median absolute deviations above their median. A single
    spike is only reported: gradients are clipped, and skipping data is the user's choice.

    Args:
        spike_mads: number of deviations above which a loss is a spike.
        halt_after: consecutive spikes that end the training; 0 for never.
    """

    def __init__(self, *, spike_mads: float, halt_after: int) -> None:
        self.spike_mads = spike_mads
        self.halt_after = halt_after
        self._losses: list[float] = []
        self._in_a_row = 0

    def observe(self, step: int, loss: float) -> float | None:
        """Record a finite loss; return its deviations above the median if it is a spike."""
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
        """Return why the training must end after a step and what to do, or None.

        Args:
            step: the last observed step.
            saved_step: step of the newest checkpoint.
        """
        if not self.halt_after or self._in_a_row < self.halt_after:
            return None
        first = step - self._in_a_row + 1
        return (
            f"step {step}: the loss has spiked in {self._in_a_row} steps in a row, from step "
            f"{first} on, to {self._losses[-1]:.4g}. The newest checkpoint is of step "
            f"{saved_step}; the same command resumes there and repeats these steps. Look at the "
            "losses in metrics.jsonl; start over with a lower training.learning_rate or more "
            "training.warmup_steps, or ignore spikes with training.halt_after_spikes=0"
        )

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON values."""
        return {"losses": list(self._losses), "in_a_row": self._in_a_row}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self._losses, self._in_a_row = list(state["losses"]), int(state["in_a_row"])

    def _deviations(self, loss: float) -> float:
        if len(self._losses) < MIN_LOSSES:
            return -math.inf
        middle = median(self._losses)
        deviation = median(abs(value - middle) for value in self._losses)
        return (loss - middle) / max(deviation, LEAST_DEVIATION * abs(middle), 1e-30)


def explain_non_finite(
    step: int,
    objectives: Objectives,
    world: World,
    batches: Sequence[MicroBatch],
    losses: Sequence[Mapping[Term, Tensor]],
) -> str:
    """Describe the first micro-batch whose loss, or whose own gradient, is not finite.

    All processes examine their own micro-batches at the same time, because they run the models
    together; the message comes from the first one that finds something.

    Args:
        step: the failed step, before its update.
        objectives: used to repeat the passes.
        world: the processes.
        batches: this process's micro-batches of the step.
        losses: of each micro-batch, by term.
    """
    for batch, by_term in zip(batches, losses, strict=True):
        for term, loss in by_term.items():
            blocks = batch.block_ids
            what = None
            if not bool(torch.isfinite(loss)):
                what = f"{term.objective} loss is {float(loss)}"
            if not world.any(what is not None):
                what = _gradient_problem(objectives, batch, term, loss)
                blocks = sorted({b for own in world.gather(blocks) for b in own})
            if not world.any(what is not None):
                continue
            where = objectives.where_not_finite(batch)
            message = what and (
                f"step {step}: the {batch.bucket} bucket's {what} on blocks "
                f"{blocks} ({where}). No weight "
                "was changed by this step; lower training.learning_rate, raise "
                "training.warmup_steps, or look at these blocks"
            )
            return str(next(text for text in world.gather(message) if text))
    return (
        f"step {step}: the gradient norm overflowed though every micro-batch's "
        "gradient is finite; lower training.learning_rate"
    )


def _gradient_problem(
    objectives: Objectives, batch: MicroBatch, term: Term, loss: Tensor
) -> str | None:
    """Repeat one term's backward pass alone; return which gradients are not finite, or None."""
    objectives.student.zero_grad(set_to_none=True)
    torch.autograd.backward(objectives.losses(batch)[term] * batch.shares[term])
    weights = named_weights(objectives.student)
    grads = {name: local(w.grad) for name, w in weights.items() if w.grad is not None}
    wrong = [name for name, grad in grads.items() if not bool(torch.isfinite(grad).all())]
    if not wrong:
        return None
    # The backward pass visits the last layer first.
    return (
        f"{term.objective} gradient is not finite, in {len(wrong)} of {len(grads)} weights, the "
        f"last of them {wrong[-1]} (its loss is {float(loss)})"
    )
