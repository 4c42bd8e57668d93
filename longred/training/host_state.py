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

from longred.method.layout import PART_BYTES, PARTS_ON_DEVICE
from longred.training.sharding import divided_like, local

SLAB_BYTES = 2**30
"""Pinned memory taken at once: torch rounds each piece up to a power of two, up to twice its size.
"""


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
        self._pinned = _PinnedSlabs()
        # Made once: each new stream would have memory of its own.
        self._lanes = _lanes(part_device(inner.param_groups))

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
        lanes = self._lanes
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
                kept[kind] = _each(value, self._pinned.like if weight.is_cuda else _host_like)
            for target, plain in zip(_plain(kept[kind]), _plain(value), strict=True):
                target.copy_(plain, non_blocking=True)

    def _send(self, part: list[Tensor], lanes: "_Lanes") -> dict[Tensor, dict[str, Tensor]]:
        """Start a part's state on its way to the weights' device."""
        found: dict[Tensor, dict[str, Tensor]] = {weight: {} for weight in part}
        lanes.await_room()
        places: list[tuple[Tensor, Tensor]] = []
        for weight in part:
            for kind, value in self.state.get(weight, {}).items():
                place = functools.partial(_place_for, device=self._homes[kind])
                sent = _each(value, place)
                places += zip(_plain(sent), _plain(value), strict=True)
                if self._divided[kind]:
                    sent = divided_like(weight, sent)
                found[weight][kind] = sent
        with lanes.into():
            for target, plain in places:
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


class _Lanes:
    """Both ways between host and device and the work there, in one lane: nothing overlaps."""

    def await_room(self) -> None:
        """Wait until no more parts are on the device than may be, with one more."""

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

    All memory is the working stream's, and what is read on another is not the allocator's again
    before the reader is done. The host waits for old parts, so that it does not run ahead and fill
    the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.work = torch.cuda.current_stream(device)
        new_stream: Any = torch.cuda.Stream
        self.inward, self.outward = new_stream(device), new_stream(device)
        self.returned: collections.deque[torch.cuda.Event] = collections.deque()

    def await_room(self) -> None:
        """Wait until no more parts are on the device than may be, with one more."""
        # The part that leaves and the one in work are PARTS_ON_DEVICE with this one.
        while len(self.returned) > PARTS_ON_DEVICE - 2:
            self.returned.popleft().synchronize()

    def into(self) -> contextlib.AbstractContextManager[Any]:
        """Copy to the device inside."""
        # What had this memory before on the working stream is done with it.
        self.inward.wait_stream(self.work)
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
                    plain.record_stream(self.outward)

    def finish(self) -> None:
        """Wait for all copies."""
        torch.cuda.synchronize(self.device)
        self.returned.clear()


def _lanes(device: torch.device) -> _Lanes:
    return _GpuLanes(device) if device.type == "cuda" else _Lanes()


def part_device(groups: list[dict[str, Any]]) -> torch.device:
    """Return the device of the weights that an optimizer updates."""
    device: torch.device = groups[0]["params"][0].device
    return device


def _place_for(plain: Tensor, device: torch.device) -> Tensor:
    return torch.empty_like(plain, device=device)


def _host_like(plain: Tensor) -> Tensor:
    return torch.empty_like(plain, device="cpu")


class _PinnedSlabs:
    """Pinned host memory, given out of slabs whose sizes torch does not round up."""

    ALIGNMENT = 512

    def __init__(self) -> None:
        self.slabs: list[Tensor] = []
        self.used: list[int] = []

    def like(self, plain: Tensor) -> Tensor:
        """Return pinned memory for a tensor's values, contiguous."""
        size = -(-max(plain.nbytes, 1) // self.ALIGNMENT) * self.ALIGNMENT
        slab = next((i for i, slab in enumerate(self.slabs) if self._room(i) >= size), None)
        if slab is None:
            slab = len(self.slabs)
            self.slabs.append(self._new(max(SLAB_BYTES, 1 << (size - 1).bit_length())))
            self.used.append(0)
        start = self.used[slab]
        self.used[slab] += size
        values = self.slabs[slab][start : start + plain.nbytes]
        return values.view(plain.dtype).view(plain.shape)

    def _room(self, slab: int) -> int:
        return len(self.slabs[slab]) - self.used[slab]

    def _new(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)


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
