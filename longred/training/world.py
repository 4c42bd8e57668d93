"""The processes of one training and how they agree.

Every method must be called by all processes, in the same order.
"""

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from longred.errors import BY_EXIT_CODE, LongredError, Stopped
from longred.models.load import choose_device
from longred.training.machine import check_gpus, grow_segments

_TIMEOUT = datetime.timedelta(minutes=30)
"""How long a process waits for the others; a dead one is noticed at once by its connection."""


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a training as seen by one of them; a single process by default.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        num_here: number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    num_here: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes shared files."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes by rank; sent as JSON, never as pickle."""
        if self.size == 1:
            return [value]
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(content)]))
        most = max(int(size) for size in sizes)
        padded = torch.zeros(most, dtype=torch.uint8)
        padded[: len(content)] = content
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [
            json.loads(bytes(part[: int(size)].tolist()).decode())
            for part, size in zip(parts, sizes, strict=True)
        ]

    def any(self, value: bool) -> bool:
        """Return whether the value is true in any process."""
        return any(self.gather(value))

    def max(self, value: int) -> int:
        """Return the largest value of all processes, in one exchange of 8 bytes."""
        if self.size == 1:
            return value
        largest = torch.tensor([value], dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes, bit-identical in each of them."""
        return [sum(column) for column in zip(*self.gather(list(values)), strict=True)]

    def on_first(self, function: Callable[[], Any]) -> Any:
        """Call a function in the first process; return its JSON value in all.

        Raises:
            LongredError: the function raised it; raised in all processes.
        """
        value = None
        with self.together():
            if self.is_first:
                value = function()
        return self.gather(value)[0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run a block in all processes; an error in one is raised in all.

        Raises:
            LongredError: the process's own error, or that of the first process that has one.
        """
        error: LongredError | None = None
        try:
            yield
        except LongredError as raised:
            error = raised
        if self.size > 1:
            errors = self.gather(None if error is None else [error.exit_code, str(error)])
            first = next((found for found in errors if found is not None), None)
            if first is not None and error is None:
                code, message = first
                kind = BY_EXIT_CODE.get(code, LongredError)
                error = Stopped(code - 128) if code > 128 else kind(message)
        if error is not None:
            raise error


ALONE = World()
"""A training in one process."""


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """Connect to the other processes of a launcher, using torchrun's environment variables.

    Without those variables this process is alone.

    Args:
        device: `cpu`, `cuda` or `auto`; each process uses the GPU of its local rank.

    Raises:
        PreflightError: there are more processes than GPUs on this machine.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    grow_segments()
    on_gpu = choose_device(device, "training.device").type == "cuda"
    num_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if on_gpu:
        check_gpus(num_here)
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Gloo carries the small JSON values, NCCL the weights.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_TIMEOUT)
    yield World(dist.get_rank(), size, num_here)
    # Skipped after an error: others may be waiting in another collective, and this would hang.
    dist.destroy_process_group()
