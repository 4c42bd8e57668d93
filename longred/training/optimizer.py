"""The optimizer update on float32 weights, and its state as named tensors."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from longred.errors import MismatchError, PreflightError
from longred.method.job import TrainingJob
from longred.method.schedules import learning_rate
from longred.training.host_state import HostState, device_of
from longred.training.sharding import local

Optimizer = torch.optim.Optimizer | HostState
MOMENTS = ("exp_avg", "exp_avg_sq")


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained weights by name, tied weights once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def build_optimizer(model: nn.Module, job: TrainingJob) -> Optimizer:
    """Create the job's optimizer over the trained weights.

    Vectors (norms, biases) decay only with `decay_norms`.

    `adamw` and `adamw8bit` are both AdamW (arXiv 1711.05101). The latter stores the moments of
    large weights in 8 bits with one scale per 256 values (2110.02861), a quarter of the memory.

    Raises:
        PreflightError: torchao is needed and not installed.
    """
    weights = list(named_weights(model).values())
    decay_of_vectors = job.weight_decay if job.decay_norms else 0.0
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": job.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": decay_of_vectors},
    ]
    groups = [group for group in groups if group["params"]]
    settings: dict[str, Any] = {"lr": job.learning_rate, "betas": job.betas, "eps": job.epsilon}
    if job.optimizer == "adamw8bit":
        optimizer = adamw8bit_class()(groups, **settings)
    else:
        optimizer = torch.optim.AdamW(groups, **settings, fused=True)
    return HostState(optimizer) if job.optimizer_offload else optimizer


def adamw8bit_class() -> type[torch.optim.Optimizer]:
    """Import torchao's 8-bit AdamW.

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


def update(optimizer: Optimizer, step: int, job: TrainingJob) -> float:
    """Take one optimizer step and reset the gradients; return the learning rate of the step."""
    rate = learning_rate(step, job)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    compiler: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if device_of(optimizer.param_groups).type == "cpu":
        # torchao compiles its step, which needs a C++ compiler on a CPU.
        compiler = torch.compiler.set_stance("force_eager")
    with compiler:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return rate


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state as plain `<kind>.<weight name>` tensors.

    Kinds are `step` and, for each moment, the moment itself or its 8-bit form: `<moment>_codes` of
    the weight's shape and `<moment>_scale` for each 256 codes. A weight that no loss has reached
    (the LM head, if no token is predicted) has no state.
    """
    tensors: dict[str, Tensor] = {}
    for name, weight in named_weights(model).items():
        for kind, value in optimizer.state.get(weight, {}).items():
            for part, plain in _plain_parts(kind, value).items():
                tensors[f"{part}.{name}"] = plain
    return tensors


def _plain_parts(kind: str, value: Tensor) -> dict[str, Tensor]:
    """Return this process's plain tensors inside a state entry, by kind."""
    quantised: Any = local(value)
    if hasattr(quantised, "codes"):
        return {f"{kind}_codes": quantised.codes, f"{kind}_scale": quantised.scale}
    return {kind: quantised}


def checkpoint_bytes(optimizer: Optimizer, model: nn.Module) -> int:
    """Return the size of all trained weights and their optimizer state, in bytes.

    Available before the first step creates the state; sharded weights count whole.
    """
    total = 0
    for weight in named_weights(model).values():
        whole = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
        total += whole.nbytes
        for kind, value in _empty_state(optimizer, whole).items():
            total += sum(plain.nbytes for plain in _plain_parts(kind, value).values())
    return total


def load_optimizer_tensors(
    optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Restore what `optimizer_tensors` returned.

    Raises:
        MismatchError: names or shapes belong to another model or optimizer.
    """
    other = "the checkpoint's optimizer state is of another model or optimizer"
    unused = set(tensors)
    for name, weight in named_weights(model).items():
        if f"step.{name}" not in tensors:
            continue
        state = _empty_state(optimizer, weight)
        for kind, value in state.items():
            for part, plain in _plain_parts(kind, value).items():
                key = f"{part}.{name}"
                if key not in tensors:
                    raise MismatchError(f"{other} (first difference: {key})")
                saved = tensors[key]
                if saved.shape != plain.shape:
                    raise MismatchError(f"the checkpoint's {key} has shape {tuple(saved.shape)}")
                plain.copy_(saved)
                unused.discard(key)
        if isinstance(optimizer, HostState):
            optimizer.put(weight, state)
        else:
            optimizer.state[weight] = state
    if unused or not tensors:
        first = min(unused, default="it is empty")
        raise MismatchError(f"{other} (first difference: {first})")


def _empty_state(optimizer: Optimizer, weight: Tensor) -> dict[str, Tensor]:
    """Return the zero state that the optimizer creates for a weight in its first step."""
    inner: Any = optimizer.inner if isinstance(optimizer, HostState) else optimizer
    if hasattr(inner, "_new_buffer"):
        # torchao decides which moments are stored in 8 bits; its counter is on the host.
        moments = {kind: inner._new_buffer(weight, kind == "exp_avg") for kind in MOMENTS}
        return {"step": torch.tensor(0.0), **moments}
    moments = {kind: torch.zeros_like(weight, requires_grad=False) for kind in MOMENTS}
    # The fused kernel expects its counter on the weights' device.
    return {"step": torch.zeros((), device=weight.device), **moments}
