"""Runs cells as child processes: `longred run` with the settings of the cell.

A process of its own keeps a cell's memory, threads and GPUs apart from those of the others, and
makes each number repeatable by one command.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from longred.errors import BY_EXIT_CODE, LongredError, LostProcessError, Stopped
from longred.store.artifacts import make_folder
from longred.study.cells import PlannedCell

LAST_LINES = 8
CHILD = "longred.cli.child"
"""The command line in a process that ends with its parent."""
STOPPED = {128 + number: number for number in (signal.SIGINT, signal.SIGTERM)}


@dataclass(frozen=True, slots=True)
class Slot:
    """A share of this machine that one cell at a time uses.

    Attributes:
        environment: variables that restrict a process to it.
    """

    environment: Mapping[str, str]


def divide(num_slots: int, *, num_gpus: int, num_cores: int) -> list[Slot]:
    """Divide this machine into slots: its GPUs if it has any, else the threads of its CPU.

    Args:
        num_slots: number of cells that run side by side.
        num_gpus: GPUs of this machine.
        num_cores: cores of this machine that this process may use.
    """
    if num_gpus:
        each = max(1, num_gpus // num_slots)
        groups = [range(n * each, (n + 1) * each) for n in range(num_slots)]
        return [Slot({"CUDA_VISIBLE_DEVICES": ",".join(map(str, group))}) for group in groups]
    threads = str(max(1, num_cores // num_slots))
    return [Slot({"OMP_NUM_THREADS": threads}) for _ in range(num_slots)]


class Children:
    """The running cells of a study; safe to use from several threads."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_stopping = False

    def run(self, cell: PlannedCell, slot: Slot, log: Path, settings: Sequence[str] = ()) -> None:
        """Run a cell to its end; finished stages are reused, so that it can be repeated.

        Args:
            cell: the cell.
            slot: where it runs.
            log: receives its output; the folder is created.
            settings: further overrides that do not change results, such as `store.path=…`.

        Raises:
            LongredError: of the class and with the message of the run's error.
            LostProcessError: it was killed or crashed; the message has the end of its log.
            Stopped: a signal ended it.
        """
        make_folder(log.parent)
        # A run of a killed study may still write its last lines into the old file.
        log.unlink(missing_ok=True)
        command = [sys.executable, "-m", CHILD, "run", cell.recipe, *cell.overrides, *settings]
        with log.open("wb") as output:
            process = self._start(command, slot, output)
            try:
                code = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
                if process.stdin is not None:
                    process.stdin.close()
        if code and self._is_stopping:
            raise Stopped(signal.SIGINT)  # asked for, so not tried again
        if code:
            raise _error(cell, code, log)

    def stop(self) -> None:
        """Stop all cells: each saves its progress, as a stopped run does; wait for them."""
        with self._lock:
            self._is_stopping = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()

    def _start(
        self, command: Sequence[str], slot: Slot, output: IO[bytes]
    ) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._is_stopping:
                raise Stopped(signal.SIGINT)
            # These are a worker's words to the flow run that it started, which is the study.
            own = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT__")}
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**own, **slot.environment},
                # Ctrl-C reaches the whole group; only the study decides what it means.
                start_new_session=True,
            )
            self._running.add(process)
            return process


def _error(cell: PlannedCell, code: int, log: Path) -> LongredError:
    """Return the error of a cell that ended with an exit status."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("longred: ") for line in lines if line.startswith("longred: ")]
    if code in STOPPED:
        return Stopped(STOPPED[code])
    kind = BY_EXIT_CODE.get(code)
    if kind is None:
        end = "\n".join(lines[-LAST_LINES:])
        return LostProcessError(
            f"{cell.name}: ended with status {code}; its log {log} ends:\n{end}"
        )
    return kind(f"{cell.name}: {errors[-1] if errors else f'ended with status {code}'} ({log})")
