"""Whether 8-bit floats are exact enough for a training, measured on its first rows before it."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from longred.errors import PreflightError
from longred.method.methods import Term
from longred.training.layers.fp8 import without_fp8
from longred.training.step import MicroBatch, Objectives

log = logging.getLogger(__name__)

HIDDEN_BOUND = 0.1
"""Most that the last hidden states may differ by, relative to their norm."""
LOSS_BOUND = 0.01
"""Most that a loss may differ by, relative to it, beside half the square of `HIDDEN_BOUND`: the
cosine distance of states so far apart, which a distillation's loss can never fall below."""


def check_fp8_quality(objectives: Objectives, batches: Iterable[MicroBatch]) -> None:
    """Compare hidden states and losses in 8 bits with those of the compute type.

    Args:
        objectives: of a student that computes in 8 bits.
        batches: a step's micro-batches; the first of every bucket is used.

    Raises:
        PreflightError: they differ by more than the bounds; the message gives both.
    """
    first = {batch.bucket: batch for batch in reversed(list(batches))}
    # All of them first: where weights are divided, every process has to take every pass.
    problems = [_problem(objectives, batch) for batch in first.values()]
    for problem in filter(None, problems):
        raise PreflightError(f"training.fp8: {problem}; set it to false")


def _problem(objectives: Objectives, batch: MicroBatch) -> str | None:
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
        allowed = LOSS_BOUND * abs(loss) + HIDDEN_BOUND**2 / 2
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
