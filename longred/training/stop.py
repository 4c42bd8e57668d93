"""Why a training ends early, by a signal or its parent's death, and who may train in a folder."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from longred.errors import LockedError, MismatchError
from longred.store.artifacts import locked, read_json, write_json

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ORPHAN_WAIT_SECONDS = 600.0


class StopRequest:
    """Remembers the first signal; asked by the loop at step boundaries, so a save is never cut.

    Args:
        liveness_fd: read end of a pipe whose write end only the parent holds; its end of file means
            that the parent died, however it died, and a byte is a signal that the parent was sent.
            None where nobody waits for this process.
    """

    def __init__(self, liveness_fd: int | None = None) -> None:
        self.liveness_fd = liveness_fd
        if liveness_fd is not None:
            os.set_blocking(liveness_fd, False)
        self.signal_number: int | None = None

    def install(self) -> None:
        """Take over SIGTERM and SIGINT of this process."""
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def __call__(self) -> int | None:
        """Return the signal that asked for the end (SIGTERM for a dead parent), or None."""
        if self.signal_number is None and self.liveness_fd is not None:
            with contextlib.suppress(BlockingIOError):
                told = os.read(self.liveness_fd, 1)
                if not told:
                    log.warning("the parent process is gone; saving and ending")
                self.signal_number = told[0] if told else int(signal.SIGTERM)
        return self.signal_number

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number = number


class StepLimit:
    """Asks for the end after so many steps of this process, as SIGTERM would.

    Args:
        stop: who else may ask for it.
        num_steps: how many.
    """

    def __init__(self, stop: StopRequest, num_steps: int) -> None:
        self.stop = stop
        self.left = num_steps

    def count(self) -> None:
        """Count one step."""
        self.left -= 1

    def __call__(self) -> int | None:
        """Return the signal that asked for the end, or SIGTERM where all steps are taken."""
        return self.stop() or (int(signal.SIGTERM) if self.left <= 0 else None)


@contextlib.contextmanager
def only_trainer(work: Path, *, parent: int | None) -> Iterator[None]:
    """Hold the work folder's trainer lock.

    A trainer whose parent died ends by itself after its step and is waited for, so that the same
    command can be run again at once.

    Args:
        work: the training's work folder.
        parent: the process that watches this one, or None.

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
                log.info("waiting for an earlier trainer, whose parent is gone, to save and end")
                time.sleep(0.5)
        write_json(note, {"process": os.getpid(), "parent": parent})
        yield


def _is_orphan(note: Path) -> bool:
    try:
        parent = read_json(note).get("parent")
    except MismatchError:
        return False
    return isinstance(parent, int) and not _is_alive(parent)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
