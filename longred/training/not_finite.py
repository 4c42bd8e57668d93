"""Words about a step whose loss or gradient is NaN or infinite: which micro-batch, and where."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from longred.method.methods import Term
from longred.training.optimizer import named_weights
from longred.training.sharding import local
from longred.training.step import MicroBatch, Objectives
from longred.training.world import World


def explain(
    step: int,
    objectives: Objectives,
    world: World,
    batches: Sequence[MicroBatch],
    losses: Sequence[Mapping[Term, Tensor]],
) -> str:
    """Name the first micro-batch whose loss, or whose gradient taken alone, is not finite.

    Several processes look at their own micro-batches side by side, since they run the models
    together; the first that finds something tells it.

    Args:
        step: the step that failed, before its update.
        objectives: which took it.
        world: the processes that took it.
        batches: of that step, this process's.
        losses: of every micro-batch, by term.
    """
    for batch, by_term in zip(batches, losses, strict=True):
        for term, loss in by_term.items():
            blocks = batch.block_ids
            what = _wrong_loss(term, loss)
            if not world.any(what is not None):
                what = _wrong_gradient(objectives, batch, term, loss)
                blocks = sorted({b for own in world.gather(blocks) for b in own})
            if not world.any(what is not None):
                continue
            where = objectives.where_not_finite(batch)
            told = what and (
                f"step {step}: the {batch.bucket} bucket's {what} on blocks "
                f"{blocks} ({where}). No weight "
                "was changed by this step; lower training.learning_rate, raise "
                "training.warmup_steps, or look at these blocks"
            )
            return str(next(text for text in world.gather(told) if text))
    return (
        f"step {step}: the gradient norm overflowed though every micro-batch's "
        "gradient is finite; lower training.learning_rate"
    )


def _wrong_loss(term: Term, loss: Tensor) -> str | None:
    return None if bool(torch.isfinite(loss)) else f"{term.objective} loss is {float(loss)}"


def _wrong_gradient(
    objectives: Objectives, batch: MicroBatch, term: Term, loss: Tensor
) -> str | None:
    objectives.student.zero_grad(set_to_none=True)
    torch.autograd.backward(objectives.losses(batch)[term] * batch.shares[term])
    weights = named_weights(objectives.student)
    grads = {name: local(w.grad) for name, w in weights.items() if w.grad is not None}
    wrong = [name for name, grad in grads.items() if not bool(torch.isfinite(grad).all())]
    if not wrong:
        return None
    # The backward pass comes through the layers from the last to the first.
    return (
        f"{term.objective} gradient is not finite, in {len(wrong)} of {len(grads)} weights, the "
        f"last of them {wrong[-1]} (its loss is {float(loss)})"
    )
