"""How one training is divided over processes, and its state over host and device memory."""

from dataclasses import dataclass

from longred.method.values import Count

PART_BYTES = 2**29
"""Bytes of weights in one part of the offloaded optimizer state, which is up to twice as large."""

PARTS_ON_DEVICE = 3
"""Parts whose state is on the device at once: being loaded, updated, and stored."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The division of one training over processes, one per GPU; it changes only the last bits.

    The recipe's section `training.parallel` takes its descriptions from here.

    Attributes:
        num_processes: number of processes on all machines, one per GPU.
        replicas: number of whole copies of the weights; the processes of a copy share it (FSDP2).
            1 needs the least memory, one per process is plain data parallelism, one per machine is
            HSDP.
        sequence_parallel: number of neighbouring processes that share the tokens of one long row;
            must divide the model's key-value heads. Other rows are never shared.
    """

    num_processes: Count = 1
    replicas: Count = 1
    sequence_parallel: Count = 1

    def problem(self) -> str | None:
        """Return what cannot work, naming the setting, or None."""
        for name in ("num_processes", "replicas", "sequence_parallel"):
            value = getattr(self, name)
            if value < 1:
                return f"training.parallel.{name}: must be 1 or more, got {value}"
            if self.num_processes % value:
                return (
                    f"training.parallel.{name}: {value} does not divide the number of processes "
                    f"({self.num_processes})"
                )
        return None

    def readers(self, bucket: str) -> int:
        """Return the number of processes, or groups, that read different rows of a bucket."""
        return self.num_processes // (self.sequence_parallel if bucket == "long" else 1)

    def rows_problem(self, bucket: str, num_rows: int, long_length: int) -> str | None:
        """Return why a step's rows of a bucket cannot be divided, or None."""
        readers = self.readers(bucket)
        if num_rows % readers:
            return (
                f"training.parallel.num_processes: {self.num_processes} processes cannot divide "
                f"the {num_rows} rows of the {bucket} bucket in a step: {readers} of them read "
                f"different rows; change training.step_tokens so that {readers} divides "
                "the rows, or use fewer processes"
            )
        if bucket == "long" and long_length % self.sequence_parallel:
            return (
                f"training.parallel.sequence_parallel: {self.sequence_parallel} does not divide "
                f"the {long_length} tokens of a long row"
            )
        return None

    def part(self, bucket: str, length: int, rank: int) -> slice:
        """Return the slice of a row's tokens that a process computes."""
        if bucket != "long":
            return slice(0, length)
        size = length // self.sequence_parallel
        start = rank % self.sequence_parallel * size
        return slice(start, start + size)
