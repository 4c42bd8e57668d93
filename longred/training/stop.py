"""Stop requests by a signal, a dead parent or a step limit; and the lock of the work folder."""

import contextlib
import contextvars
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from longred.errors import LockedError, MismatchError
from longred.store.artifacts import read_json, write_json
from longred.store.locks import locked

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ORPHAN_WAIT_SECONDS = 600.0


def announce(text: str) -> None:
    """Log a warning from a handler of a signal.

    In a thread: the handler may have interrupted a write or a log line of this one, whose locks it
    would wait for.
    """
    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(log.warning, text)).start()


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C in a command: say so at once, then raise KeyboardInterrupt.

    Work that cannot be interrupted, such as a training, replaces this handler for its duration.
    """
    announce("stopping; finished work is kept, run the same command to go on")
    raise KeyboardInterrupt


REPLACEABLE = (signal.SIG_DFL, signal.default_int_handler, interrupt)
"""Handlers of a signal that a training may replace; any other belongs to its host."""


class StopRequest:
    """Remembers the first signal; the loop reads it between micro-batches, never during a save.

    Args:
        liveness_fd: read end of a pipe whose write end only the parent holds: end of file means
            that the parent died, in whatever way, and a byte is a signal that the parent received.
            None without a parent.
        max_steps: steps of this process after which to stop as if by SIGTERM; None for no limit.
    """

    def __init__(self, liveness_fd: int | None = None, *, max_steps: int | None = None) -> None:
        self.liveness_fd = liveness_fd
        if liveness_fd is not None:
            os.set_blocking(liveness_fd, False)
        self.steps_left = max_steps
        self.signal_number: int | None = None

    def install(self) -> None:
        """Handle SIGTERM and SIGINT in this process."""

        def receive(number: int, frame: FrameType | None) -> None:
            if self.signal_number is None:
                self.signal_number = number

        for number in SIGNALS:
            signal.signal(number, receive)

    def count_step(self) -> None:
        """Count a finished step."""
        if self.steps_left is not None:
            self.steps_left -= 1

    def __call__(self) -> int | None:
        """Return the signal that requests a stop (SIGTERM for a dead parent), or None."""
        if self.signal_number is None and self.liveness_fd is not None:
            with contextlib.suppress(BlockingIOError):
                received = os.read(self.liveness_fd, 1)
                if not received:
                    log.warning("the parent process is gone; saving and exiting")
                self.signal_number = received[0] if received else int(signal.SIGTERM)
        if self.signal_number is None and self.steps_left is not None and self.steps_left <= 0:
            return int(signal.SIGTERM)
        return self.signal_number


@contextlib.contextmanager
def only_trainer(work: Path, *, parent: int | None) -> Iterator[None]:
    """Hold the trainer lock of the work folder.

    A trainer whose parent died exits after its current micro-batch; wait for it, so that the same
    command can be repeated at once.

    Args:
        work: the training's work folder.
        parent: process id of this trainer's parent, or None.

    Raises:
        LockedError: another trainer works here.
    """
    note = work / "trainer.json"
    deadline = time.monotonic() + _ORPHAN_WAIT_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(work / "trainer.lock", f"the training in {work}"))
                break
            except LockedError:
                if not _is_orphan(note) or time.monotonic() > deadline:
                    raise
                log.info("waiting for an earlier trainer without a parent to save and exit")
                time.sleep(0.5)
        write_json(note, {"process": os.getpid(), "parent": parent})
        yield


def _is_orphan(note: Path) -> bool:
    """Return whether the parent of the trainer that wrote a note is dead."""
    try:
        parent = read_json(note).get("parent")
        if isinstance(parent, int):
            os.kill(parent, 0)
    except ProcessLookupError:
        return True
    except (MismatchError, PermissionError):
        return False
    return False
