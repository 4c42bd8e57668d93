"""Words about a step whose loss or gradient is NaN or infinite: which micro-batch, and where."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longred.methods import Term
from longred.training.optimizer import named_weights
from longred.training.step import MicroBatch

if TYPE_CHECKING:
    from longred.training.loop import Trainer


def explain(
    trainer: "Trainer",
    batches: Sequence[MicroBatch],
    losses: Sequence[Mapping[Term, Tensor]],
) -> str:
    """Name the first micro-batch whose loss, or whose gradient taken alone, is not finite.

    Args:
        trainer: in the step that failed, before its update.
        batches: of that step.
        losses: of every micro-batch, by term.
    """
    step = trainer.step + 1
    for batch, by_term in zip(batches, losses, strict=True):
        for term, loss in by_term.items():
            what = _what_is_not_finite(trainer, batch, term, loss)
            if what:
                return (
                    f"step {step}: the {batch.bucket} bucket's {what} on blocks "
                    f"{batch.block_ids} ({trainer.objectives.where_not_finite(batch)}). No weight "
                    "was changed by this step; lower training.learning_rate, raise "
                    "training.warmup_steps, or look at these blocks"
                )
    return (
        f"step {step}: the gradient norm overflowed though every micro-batch's gradient is "
        "finite; lower training.learning_rate"
    )


def _what_is_not_finite(
    trainer: "Trainer", batch: MicroBatch, term: Term, loss: Tensor
) -> str | None:
    if not bool(torch.isfinite(loss)):
        return f"{term.objective} loss is {float(loss)}"
    trainer.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(trainer.objectives.losses(batch)[term] * batch.shares[term])
    grads = {n: w.grad for n, w in named_weights(trainer.student).items() if w.grad is not None}
    wrong = [name for name, grad in grads.items() if not bool(torch.isfinite(grad).all())]
    if not wrong:
        return None
    # The backward pass comes through the layers from the last to the first.
    return (
        f"{term.objective} gradient is not finite, in {len(wrong)} of {len(grads)} weights, the "
        f"last of them {wrong[-1]} (its loss is {float(loss)})"
    )
