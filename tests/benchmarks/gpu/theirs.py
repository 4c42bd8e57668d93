"""Compare the authors' way of computing the losses with ours, at one depth.

Both sides run the same micro-batches; time, peak memory, losses and gradient norms are compared.
"""

from collections.abc import Mapping
from typing import Any

import torch
import training

from gpu.buckets import BUCKETS
from gpu.child import Check, Skip
from gpu.sizes import device_of, scale_of, shape_at
from gpu.steps import backward, measure_batch, trainer_at
from longred.cost.machine import memory_of

LOGIT_BYTES = 14
"""Bytes per logit at the peak of the authors' implementation: the logit in bfloat16 and float32,
its probability, and its gradient in both types."""
RESERVE_BYTES = 3 * 2**30
GRADIENT_TOLERANCE = 0.05
DEPTHS = (24, 16, 12, 8, 4, 2, 1)


def their_bytes(check: Check, layers: int) -> float:
    """Return the approximate peak memory of the authors' way, on the longest rows.

    Counts weights and gradients in float32, a teacher with bfloat16 linear layers, every layer's
    input, and the logits of all tokens.
    """
    shape, preset = shape_at(check, layers), scale_of(check).preset
    tokens = preset.target_window
    embeddings = shape.num_parameters - shape.num_linear
    teacher = 2.0 * shape.num_linear + 4.0 * embeddings
    held = 4.0 * shape.hidden_size * tokens * layers
    return 8.0 * shape.num_parameters + teacher + held + LOGIT_BYTES * tokens * shape.vocab_size


def depth(check: Check) -> int:
    """Return the largest depth at which the authors' way should fit in memory."""
    if check.tiny:
        return scale_of(check).depths[0]
    limit = memory_of(device_of(check)) - RESERVE_BYTES
    found = next((layers for layers in DEPTHS if their_bytes(check, layers) <= limit), None)
    if found is None:
        raise Skip("the authors' way does not fit this device at any depth")
    return found


def measure(check: Check, side: str) -> None:
    """Measure one side; compare `theirs` with the earlier results of `ours`."""
    layers = depth(check)
    ours = {bucket: check.found.get(f"ours/{bucket}") for bucket in BUCKETS}
    differences = []
    with trainer_at(check, layers, {}, kind=training.SIDES[side]) as (trainer, batches):
        for bucket in BUCKETS:
            losses = backward(trainer, batches[bucket])
            named = {term.metric: float(loss) for term, loss in losses.items()}
            norm = float(torch.nn.utils.get_total_norm([w.grad for w in _trained(trainer)]))
            trainer.optimizer.zero_grad(set_to_none=True)
            measured = measure_batch(trainer, batches[bucket], repeats=2)
            trainer.optimizer.zero_grad(set_to_none=True)
            measured |= {"losses": named, "grad_norm": norm}
            if side == "theirs" and (line := ours[bucket]) is not None:
                compared = _compared(line["measured"], measured, trainer.job.dtype)
                differences += compared.pop("problems")
                measured |= compared
            rows = len(batches[bucket].input_ids_BT)
            check.line(bucket, settings={"layers": layers, "rows": rows}, measured=measured)
    if side == "theirs" and None in ours.values():
        raise RuntimeError(
            "needs the results of item `ours`, which are missing; nothing was compared"
        )
    assert not differences, "; ".join(differences)


def _trained(trainer: Any) -> list[torch.Tensor]:
    return [weight for weight in trainer.student.parameters() if weight.grad is not None]


def _compared(ours: Mapping[str, Any], theirs: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return our speedup, memory share and differences; `problems` lists those above tolerance."""
    problems = []
    try:
        largest = training.largest_difference(ours["losses"], theirs["losses"], dtype)
    except AssertionError as error:
        largest, problems = float("nan"), [str(error)]
    norm = abs(ours["grad_norm"] / theirs["grad_norm"] - 1)
    if norm > GRADIENT_TOLERANCE:
        problems.append(
            f"the gradients' norms differ by {norm:.1e}, more than {GRADIENT_TOLERANCE}"
        )
    return {
        "times_as_fast": theirs["seconds"] / ours["seconds"],
        "share_of_peak": ours["peak_bytes"] / theirs["peak_bytes"],
        "loss_difference": largest,
        "grad_norm_difference": norm,
        "problems": problems,
    }
