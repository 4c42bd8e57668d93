"""The update: the optimizers of the table, on float32 weights, and their state as named tensors."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from longred.errors import MismatchError, PreflightError
from longred.method.job import TrainingJob
from longred.method.schedules import learning_rate
from longred.training.host_state import HostState, part_device
from longred.training.sharding import local

Optimizer = torch.optim.Optimizer | HostState
MOMENTS = ("exp_avg", "exp_avg_sq")


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained weights by name, each once where weights are tied."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def build_optimizer(model: nn.Module, job: TrainingJob) -> Optimizer:
    """Return the job's optimizer over the trained weights; vectors (norms, biases) do not decay.

    Raises:
        PreflightError: its package is not installed.
    """
    weights = list(named_weights(model).values())
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": job.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = OPTIMIZERS[job.optimizer]([group for group in groups if group["params"]], job)
    return HostState(optimizer) if job.optimizer_offload else optimizer


def _adamw(groups: list[dict[str, Any]], job: TrainingJob) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"lr": job.learning_rate, "betas": job.betas, "eps": job.epsilon}
    return torch.optim.AdamW(groups, **settings, fused=True)


def adamw8bit_class() -> type[torch.optim.Optimizer]:
    """Return torchao's optimizer.

    Raises:
        PreflightError: torchao is not installed.
    """
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise PreflightError(
            f"training.optimizer: adamw8bit needs torchao ({error}); pip install torchao, or use "
            "adamw, with training.optimizer_offload where its state does not fit the GPU"
        ) from error
    found: type[torch.optim.Optimizer] = AdamW8bit
    return found


def _adamw8bit(groups: list[dict[str, Any]], job: TrainingJob) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"lr": job.learning_rate, "betas": job.betas, "eps": job.epsilon}
    return adamw8bit_class()(groups, **settings)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], TrainingJob], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
}
"""Every optimizer that `training.optimizer` can name.

Both are AdamW (arXiv 1711.05101); adamw8bit keeps the moments of large weights in 8 bits with one
scale for every 256 values (2110.02861), a quarter of the memory.
"""


def update(optimizer: Optimizer, step: int, job: TrainingJob) -> float:
    """Take one optimizer step and forget the gradients; return the learning rate that was used."""
    rate = learning_rate(step, job)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    with _compiler(optimizer):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return rate


def _compiler(optimizer: Optimizer) -> contextlib.AbstractContextManager[Any]:
    """On a CPU, run as written what torchao compiles: it would ask for a C++ compiler."""
    if part_device(optimizer.param_groups).type == "cpu":
        stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    return contextlib.nullcontext()


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state as plain `<kind>.<weight name>` tensors.

    The kinds are `step` and, of each moment, the moment itself or, in 8 bits, `<moment>_codes` of
    the weight's shape and `<moment>_scale` of each 256 codes. A weight that no loss has reached
    (the output embedding, where no token is predicted) has none.
    """
    tensors: dict[str, Tensor] = {}
    for name, weight in named_weights(model).items():
        state = optimizer.state.get(weight, {})
        for kind, value in state.items():
            tensors |= {f"{part}.{name}": plain for part, plain in plain_parts(kind, value).items()}
    return tensors


def plain_parts(kind: str, value: Tensor) -> dict[str, Tensor]:
    """Return the plain tensors of this process that a state's entry is made of, by kind."""
    quantised: Any = local(value)
    if hasattr(quantised, "codes"):
        return {f"{kind}_codes": quantised.codes, f"{kind}_scale": quantised.scale}
    return {kind: quantised}


def checkpoint_bytes(optimizer: Optimizer, model: nn.Module) -> int:
    """Return what all trained weights and the optimizer's state of them take, bytes.

    Known before the first step makes the state, and of divided weights for all their rows.
    """
    total = 0
    for weight in named_weights(model).values():
        whole = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
        state = _empty_state(optimizer, whole)
        parts = [part for kind in state for part in plain_parts(kind, state[kind]).values()]
        total += sum(part.nbytes for part in (whole, *parts))
    return total


def load_optimizer_tensors(
    optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` returned.

    Raises:
        MismatchError: the names or shapes are those of another model or optimizer.
    """
    unused = set(tensors)
    for name, weight in named_weights(model).items():
        if f"step.{name}" not in tensors:
            continue
        state = _empty_state(optimizer, weight)
        for kind, value in state.items():
            for part, plain in plain_parts(kind, value).items():
                plain.copy_(_checked(tensors, f"{part}.{name}", plain))
                unused.discard(f"{part}.{name}")
        if isinstance(optimizer, HostState):
            optimizer.put(weight, state)
        else:
            optimizer.state[weight] = state
    if unused or not tensors:
        raise MismatchError(_OTHER_STATE.format(min(unused, default="it is empty")))


_OTHER_STATE = (
    "the checkpoint's optimizer state is of another model or optimizer (first difference: {})"
)


def _checked(tensors: Mapping[str, Tensor], key: str, like: Tensor) -> Tensor:
    if key not in tensors:
        raise MismatchError(_OTHER_STATE.format(key))
    if tensors[key].shape != like.shape:
        raise MismatchError(f"the checkpoint's {key} has shape {tuple(tensors[key].shape)}")
    return tensors[key]


def _empty_state(optimizer: Optimizer, weight: Tensor) -> dict[str, Tensor]:
    """Return the state that the optimizer gives a weight in its first step, still of zeros."""
    inner: Any = optimizer.inner if isinstance(optimizer, HostState) else optimizer
    if hasattr(inner, "_new_buffer"):
        # torchao's own choice of what is kept in 8 bits; its counter is on the host.
        moments = {kind: inner._new_buffer(weight, kind == "exp_avg") for kind in MOMENTS}
        return {"step": torch.tensor(0.0), **moments}
    moments = {kind: torch.zeros_like(weight, requires_grad=False) for kind in MOMENTS}
    # The fused kernel wants its counter on the weights' device.
    return {"step": torch.zeros((), device=weight.device), **moments}
