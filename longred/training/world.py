"""The processes of one training: who they are, and how they agree.

Every method must be called by all processes, in the same order.
"""

import contextlib
import datetime
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from longred.errors import BY_EXIT_CODE, LongredError, PreflightError, Stopped
from longred.models.load import choose_device
from longred.training.environment import grow_segments

_TIMEOUT = datetime.timedelta(minutes=30)
"""How long a process waits for the others; one that died is noticed at once, by its connection."""


class World:
    """The processes of a training, as one of them sees it; alone where nothing is given.

    Args:
        rank: this process, from 0.
        size: number of processes.
        num_here: those of them on this machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, num_here: int = 1) -> None:
        self.rank = rank
        self.size = size
        self.num_here = num_here

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all have in common."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the JSON values of all processes, in the order of their ranks."""
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
        """Return whether it is true in any process."""
        return any(self.gather(value))

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes, the same to the last bit in each of them."""
        return [sum(column) for column in zip(*self.gather(list(values)), strict=True)]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Do what is inside in all processes or in none: an error in one is raised in all.

        Raises:
            LongredError: the error of the first process that has one.
        """
        error: LongredError | None = None
        try:
            yield
        except LongredError as raised:
            error = raised
        if self.size > 1:
            told = self.gather(None if error is None else [error.exit_code, str(error)])
            first = next((found for found in told if found is not None), None)
            if first is not None and error is None:
                error = _error(*first)
        if error is not None:
            raise error


ALONE = World()
"""A training in one process."""


def _error(code: int, message: str) -> LongredError:
    return Stopped(code - 128) if code > 128 else BY_EXIT_CODE.get(code, LongredError)(message)


def check_gpus(num_here: int) -> None:
    """Refuse more processes than this machine has GPUs.

    Raises:
        PreflightError: there are.
    """
    if num_here > torch.cuda.device_count():
        raise PreflightError(
            f"training.parallel.num_processes: {num_here} processes on a machine with "
            f"{torch.cuda.device_count()} GPUs; start one for each GPU"
        )


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """Meet the other processes that a launcher started, as torchrun's variables name them.

    Without those variables this process is alone.

    Args:
        device: `cpu`, `cuda` or `auto`; each process takes the GPU of its local rank.

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
    # Gloo carries the few numbers that the processes agree on, whatever carries the weights.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_TIMEOUT)
    yield World(dist.get_rank(), size, num_here)
    # Not after an error: others may be waiting in another operation, and so would this process.
    dist.destroy_process_group()
