"""Locks between processes, by files that the kernel unlocks when their holder ends."""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from longred.errors import LockedError, PreflightError

log = logging.getLogger(__name__)

WAIT_SECONDS = 0.2


def make_folder(folder: Path) -> None:
    """Create a folder of the store and its parents.

    Raises:
        PreflightError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreflightError(
            f"{folder}: cannot be created ({error.strerror}); set store.path to a writable folder"
        ) from error


@contextlib.contextmanager
def locked(path: Path, what: str, *, waits: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it when the process ends.

    Args:
        path: the file; its folder is created.
        what: what the lock is of, for messages.
        waits: wait for a process that holds the lock. That process may delete the file when it has
            finished, so look for its result once the lock is held.

    Raises:
        LockedError: another process holds the lock, and `waits` is not set.
    """
    with _opened(path) as file:
        if not _acquire(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not waits:
                raise LockedError(f"{what} is in use by {holder}; wait for it or stop it ({path})")
            log.warning("waiting for %s, which %s builds", what, holder)
            while not _acquire(file):
                time.sleep(WAIT_SECONDS)
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def _opened(path: Path) -> IO[str]:
    """Open a lock's file; another process may delete its folder in between."""
    while True:
        make_folder(path.parent)
        try:
            return path.open("a+", encoding="utf-8")
        except FileNotFoundError:
            continue


def _acquire(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
