"""Optimizer state in host memory: it crosses to the weights' device in parts, step by step.

Weights and gradients stay where they are: they are used in every micro-batch, the state once a
step. The numbers are those of the optimizer alone, to the last bit.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from longred.training.sharding import divided_like, local

PART_BYTES = 2**30
"""Weights whose state is on the device at once, bytes; their state is up to twice that."""


class HostState:
    """An optimizer whose state is in host memory between steps, pinned where there is a GPU.

    Args:
        inner: the optimizer that takes the steps; every weight's update must depend on its own
            state alone.

    Attributes:
        state: of every weight, on the host; of one that is divided, this process's rows.
    """

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._homes: dict[str, torch.device] = {}
        self._divided: dict[str, bool] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's groups."""
        return self.inner.param_groups

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.inner.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Take one step, part by part."""
        groups = self.inner.param_groups
        try:
            for part in self._parts():
                chosen = {id(weight) for weight in part}
                self.inner.param_groups = [
                    {**group, "params": [w for w in group["params"] if id(w) in chosen]}
                    for group in groups
                ]
                self._step_of(part)
        finally:
            self.inner.param_groups = groups
        if part_device(groups).type == "cuda":
            # The copies back are still on their way, and a checkpoint reads them.
            torch.cuda.synchronize()

    def put(self, weight: Tensor, state: dict[str, Tensor]) -> None:
        """Copy a weight's state from its device to the host."""
        kept = self.state.setdefault(weight, {})
        for kind, value in state.items():
            self._homes[kind] = value.device
            self._divided[kind] = isinstance(value, DTensor)
            value = local(value)
            if kind not in kept:
                kept[kind] = _each(value, functools.partial(_host_like, pinned=weight.is_cuda))
            for target, plain in zip(_plain(kept[kind]), _plain(value), strict=True):
                target.copy_(plain, non_blocking=True)

    def _step_of(self, part: list[Tensor]) -> None:
        for weight in part:
            for kind, value in self.state.get(weight, {}).items():
                send = functools.partial(_sent, device=self._homes[kind])
                sent = _each(value, send)
                if self._divided[kind]:
                    sent = divided_like(weight, sent)
                self.inner.state[weight][kind] = sent
        self.inner.step()
        for weight in part:
            self.put(weight, self.inner.state.pop(weight))

    def _parts(self) -> Iterator[list[Tensor]]:
        """Yield the weights that have a gradient, about `PART_BYTES` at a time."""
        part: list[Tensor] = []
        size = 0
        for weight in (w for group in self.param_groups for w in group["params"]):
            if weight.grad is None:
                continue
            part.append(weight)
            size += weight.numel() * weight.element_size()
            if size >= PART_BYTES:
                yield part
                part, size = [], 0
        if part:
            yield part


def part_device(groups: list[dict[str, Any]]) -> torch.device:
    """Return the device of the weights that an optimizer updates."""
    device: torch.device = groups[0]["params"][0].device
    return device


def _sent(plain: Tensor, device: torch.device) -> Tensor:
    return plain.to(device, non_blocking=True, copy=True)


def _host_like(plain: Tensor, *, pinned: bool) -> Tensor:
    return torch.empty_like(plain, device="cpu", pin_memory=pinned)


def _each(value: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    """Convert the plain tensors inside a tensor: 8-bit codes are wrapped ones."""
    if not hasattr(value, "__tensor_flatten__"):
        return convert(value)
    names, context = value.__tensor_flatten__()
    inner = {name: _each(getattr(value, name), convert) for name in names}
    return type(value).__tensor_unflatten__(inner, context, value.shape, value.stride())


def _plain(value: Any) -> list[Tensor]:
    if not hasattr(value, "__tensor_flatten__"):
        return [value]
    names, _ = value.__tensor_flatten__()
    return [plain for name in names for plain in _plain(getattr(value, name))]
