"""Optimizer state in host memory: it crosses to the weights' device in parts, step by step.

Weights and gradients stay where they are: they are used in every micro-batch, the state once a
step. While one part is updated, the next crosses to the GPU and the last one back, each on a
stream of its own: the link carries both ways at once. The numbers are those of the optimizer
alone, to the last bit.
"""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from longred.training.sharding import divided_like, local

PART_BYTES = 2**29
"""Weights of a part, bytes; their state is up to twice that."""

PARTS_ON_DEVICE = 3
"""Parts whose state is on the device at once: on its way in, in work, on its way out."""


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
        lanes = _lanes(part_device(groups))
        parts = list(self._parts())
        sent = self._send(parts[0], lanes) if parts else {}
        try:
            for number, part in enumerate(parts):
                chosen = {id(weight) for weight in part}
                self.inner.param_groups = [
                    {**group, "params": [w for w in group["params"] if id(w) in chosen]}
                    for group in groups
                ]
                lanes.await_state()
                for weight, state in sent.items():
                    self.inner.state[weight].update(state)
                if number + 1 < len(parts):
                    sent = self._send(parts[number + 1], lanes)
                self.inner.step()
                lanes.await_update()
                with lanes.out():
                    for weight in part:
                        state = self.inner.state.pop(weight)
                        self.put(weight, state)
                        lanes.keep(state.values())
        finally:
            self.inner.param_groups = groups
        # The copies back are still on their way, and a checkpoint reads them.
        lanes.finish()

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

    def _send(self, part: list[Tensor], lanes: "_Lanes") -> dict[Tensor, dict[str, Tensor]]:
        """Start a part's state on its way to the weights' device."""
        found: dict[Tensor, dict[str, Tensor]] = {weight: {} for weight in part}
        with lanes.into():
            for weight in part:
                for kind, value in self.state.get(weight, {}).items():
                    send = functools.partial(_sent, device=self._homes[kind])
                    sent = _each(value, send)
                    if self._divided[kind]:
                        sent = divided_like(weight, sent)
                    found[weight][kind] = sent
        return found

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


class _Lanes:
    """Both ways between host and device and the work there, in one lane: nothing overlaps."""

    def into(self) -> contextlib.AbstractContextManager[Any]:
        """Copy to the device inside."""
        return contextlib.nullcontext()

    def await_state(self) -> None:
        """Let the work wait for what was last sent."""

    def await_update(self) -> None:
        """Let the way out wait for the work so far."""

    def out(self) -> contextlib.AbstractContextManager[Any]:
        """Copy back to the host inside."""
        return contextlib.nullcontext()

    def keep(self, state: Iterable[Tensor]) -> None:
        """Keep the memory of a part's state until it is back on the host."""

    def finish(self) -> None:
        """Wait for all copies."""


class _GpuLanes(_Lanes):
    """Streams for the two ways, beside the one on which the optimizer works.

    Memory made on one stream and read on another is not the allocator's again before the reader is
    done. The host waits for old parts, so that it does not run ahead and fill the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.work = torch.cuda.current_stream(device)
        new_stream: Any = torch.cuda.Stream
        self.inward, self.outward = new_stream(device), new_stream(device)
        self.returned: collections.deque[torch.cuda.Event] = collections.deque()

    def into(self) -> contextlib.AbstractContextManager[Any]:
        """Copy to the device inside."""
        # The part that leaves and the one in work are PARTS_ON_DEVICE with this one.
        while len(self.returned) > PARTS_ON_DEVICE - 2:
            self.returned.popleft().synchronize()
        return torch.cuda.stream(self.inward)

    def await_state(self) -> None:
        """Let the work wait for what was last sent."""
        self.work.wait_stream(self.inward)

    def await_update(self) -> None:
        """Let the way out wait for the work so far."""
        self.outward.wait_stream(self.work)

    @contextlib.contextmanager
    def out(self) -> Iterator[None]:
        """Copy back to the host inside."""
        with torch.cuda.stream(self.outward):
            yield
        self.returned.append(self.outward.record_event())

    def keep(self, state: Iterable[Tensor]) -> None:
        """Keep the memory of a part's state until it is back on the host."""
        for value in state:
            for plain in _plain(local(value)):
                if plain.is_cuda:
                    plain.record_stream(self.work)
                    plain.record_stream(self.outward)

    def finish(self) -> None:
        """Wait for all copies."""
        torch.cuda.synchronize(self.device)


def _lanes(device: torch.device) -> _Lanes:
    return _GpuLanes(device) if device.type == "cuda" else _Lanes()


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
