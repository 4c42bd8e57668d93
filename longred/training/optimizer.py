"""The update: AdamW on float32 weights, its schedule, and its state as named tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from longred.errors import MismatchError
from longred.training.job import TrainingJob

_MOMENTS = ("exp_avg", "exp_avg_sq")


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained weights by name, each once where weights are tied."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def build_optimizer(model: nn.Module, job: TrainingJob) -> torch.optim.AdamW:
    """Return AdamW over the trained weights; vectors (norms, biases) are not decayed."""
    weights = list(named_weights(model).values())
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": job.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=job.learning_rate,
        betas=job.betas,
        eps=job.epsilon,
        fused=True,
    )


def learning_rate(step: int, job: TrainingJob) -> float:
    """Return the learning rate of a step, counted from 1: linear warm-up, then constant."""
    if step > job.warmup_steps:
        return job.learning_rate
    return job.learning_rate * step / job.warmup_steps


def update(optimizer: torch.optim.AdamW, step: int, job: TrainingJob) -> float:
    """Take one optimizer step and forget the gradients; return the learning rate that was used."""
    rate = learning_rate(step, job)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return rate


def optimizer_tensors(optimizer: torch.optim.AdamW, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state as `<moment>.<weight name>` tensors, and its step count.

    A weight that no loss has reached (the output embedding, where no token is predicted) has none.
    """
    tensors: dict[str, Tensor] = {}
    for name, weight in named_weights(model).items():
        if weight not in optimizer.state:
            continue
        state = optimizer.state[weight]
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = state[moment]
        tensors[f"step.{name}"] = state["step"]
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.AdamW, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` returned.

    Raises:
        MismatchError: the names or shapes are those of another model.
    """
    names = {name.removeprefix("step.") for name in tensors if name.startswith("step.")}
    weights = {name: weight for name, weight in named_weights(model).items() if name in names}
    expected = {f"{kind}.{name}" for name in weights for kind in (*_MOMENTS, "step")}
    if set(tensors) != expected or not tensors:
        wrong = sorted(set(tensors) ^ expected) or ["it is empty"]
        raise MismatchError(
            f"the checkpoint's optimizer state is of another model (first difference: {wrong[0]})"
        )
    for name, weight in weights.items():
        state = optimizer.state[weight]
        for moment in _MOMENTS:
            value = tensors[f"{moment}.{name}"]
            if value.shape != weight.shape:
                raise MismatchError(
                    f"the checkpoint's {moment}.{name} has shape {tuple(value.shape)}"
                )
            state[moment] = value.to(weight.device, copy=True)
        # The fused kernel wants its counter on the weights' device.
        state["step"] = tensors[f"step.{name}"].to(weight.device, copy=True)
