"""Optimizer state in host memory, copied to the weights' device in parts at every step.

Weights and gradients stay on the device: every micro-batch uses them, but only the update uses the
state. While one part is updated, the next is copied to the GPU and the previous one back, each on
its own stream, so the link is used in both directions. The results are bit-identical to those of
the inner optimizer alone. On a CPU `torch.cpu` offers the same stream calls as no-ops.
"""

import collections
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from longred.method.layout import PART_BYTES, PARTS_ON_DEVICE
from longred.training.sharding import local, sharded_like

SLAB_BYTES = 2**30
"""Size of one pinned allocation: torch rounds each up to a power of two, up to twice its size."""

State = dict[str, Tensor]


class HostState:
    """An optimizer whose state is in host memory between steps, pinned if there is a GPU.

    Args:
        inner: optimizer that takes the steps; each weight's update must depend on its own state
            only.

    Attributes:
        state: of each weight, on the host; of a sharded weight, this process's rows.
    """

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.state: dict[Tensor, State] = {}
        self._devices: dict[str, torch.device] = {}
        self._sharded: dict[str, bool] = {}
        self._pinned = _PinnedSlabs()
        self._device = device_of(inner.param_groups)
        self._streams: Any = torch.get_device_module(self._device)
        # Created once: every new stream would get its own memory pool.
        self._compute = self._streams.current_stream(self._device)
        self._inward = self._streams.Stream(self._device)
        self._outward = self._streams.Stream(self._device)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's groups."""
        return self.inner.param_groups

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        """Reset the gradients."""
        self.inner.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Take one step, part by part.

        Device memory is allocated on the compute stream. Other streams use it only after the
        compute stream is done with it, and `record_stream` keeps it until the copy back is done.
        """
        groups = self.inner.param_groups
        parts = list(self._parts())
        returned: collections.deque[Any] = collections.deque()
        sent = self._send(parts[0]) if parts else {}
        try:
            for number, part in enumerate(parts):
                chosen = {id(weight) for weight in part}
                self.inner.param_groups = [
                    {**group, "params": [w for w in group["params"] if id(w) in chosen]}
                    for group in groups
                ]
                self._compute.wait_stream(self._inward)
                for weight, state in sent.items():
                    self.inner.state[weight].update(state)
                if number + 1 < len(parts):
                    # The host must not run ahead and fill the device: the part on its way out,
                    # the one being updated and this one are PARTS_ON_DEVICE.
                    while len(returned) > PARTS_ON_DEVICE - 2:
                        returned.popleft().synchronize()
                    sent = self._send(parts[number + 1])
                self.inner.step()
                self._outward.wait_stream(self._compute)
                with self._streams.stream(self._outward):
                    for weight in part:
                        self.put(weight, self.inner.state.pop(weight))
                returned.append(self._streams.Event())
                returned[-1].record(self._outward)
        finally:
            self.inner.param_groups = groups
        # A checkpoint reads what the last copies write.
        self._streams.synchronize(self._device)

    def put(self, weight: Tensor, state: State) -> None:
        """Copy a weight's state from its device to the host."""
        saved = self.state.setdefault(weight, {})
        for kind, value in state.items():
            self._devices[kind] = value.device
            self._sharded[kind] = isinstance(value, DTensor)
            value = local(value)
            if kind not in saved:
                empty = self._pinned.like if weight.is_cuda else torch.empty_like
                saved[kind] = _each(value, empty)
            for target, plain in zip(_plain(saved[kind]), _plain(value), strict=True):
                target.copy_(plain, non_blocking=True)
                if plain.is_cuda:
                    plain.record_stream(self._outward)

    def _send(self, part: list[Tensor]) -> dict[Tensor, State]:
        """Start copying a part's state to the weights' device."""
        found: dict[Tensor, State] = {}
        copies: list[tuple[Tensor, Tensor]] = []
        for weight in part:
            found[weight] = {}
            for kind, value in self.state.get(weight, {}).items():
                empty = functools.partial(torch.empty_like, device=self._devices[kind])
                sent = _each(value, empty)
                copies += zip(_plain(sent), _plain(value), strict=True)
                found[weight][kind] = sharded_like(weight, sent) if self._sharded[kind] else sent
        self._inward.wait_stream(self._compute)
        with self._streams.stream(self._inward):
            for target, plain in copies:
                target.copy_(plain, non_blocking=True)
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


def device_of(groups: list[dict[str, Any]]) -> torch.device:
    """Return the device of the weights in an optimizer's groups."""
    device: torch.device = groups[0]["params"][0].device
    return device


class _PinnedSlabs:
    """Pinned host memory, cut out of slabs whose sizes torch does not round up."""

    ALIGNMENT = 512

    def __init__(self) -> None:
        self.slabs: list[Tensor] = []
        self.used: list[int] = []

    def like(self, plain: Tensor) -> Tensor:
        """Return contiguous pinned memory of a tensor's shape and type."""
        size = -(-max(plain.nbytes, 1) // self.ALIGNMENT) * self.ALIGNMENT
        rooms = (len(slab) - used for slab, used in zip(self.slabs, self.used, strict=True))
        index = next((i for i, room in enumerate(rooms) if room >= size), len(self.slabs))
        if index == len(self.slabs):
            self.slabs.append(self._new(max(SLAB_BYTES, 1 << (size - 1).bit_length())))
            self.used.append(0)
        start = self.used[index]
        self.used[index] += size
        values = self.slabs[index][start : start + plain.nbytes]
        return values.view(plain.dtype).view(plain.shape)

    def _new(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def _each(value: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    """Convert the plain tensors inside a tensor subclass, such as torchao's 8-bit codes."""
    if not hasattr(value, "__tensor_flatten__"):
        return convert(value)
    names, context = value.__tensor_flatten__()
    inner = {name: _each(getattr(value, name), convert) for name in names}
    return type(value).__tensor_unflatten__(inner, context, value.shape, value.stride())


def _plain(value: Any) -> list[Tensor]:
    """Return the plain tensors inside a tensor subclass."""
    if not hasattr(value, "__tensor_flatten__"):
        return [value]
    names, _ = value.__tensor_flatten__()
    return [plain for name in names for plain in _plain(getattr(value, name))]
