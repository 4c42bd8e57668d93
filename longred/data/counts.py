"""How far the tokenising of many shards is, and waiting for it."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

TICK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Counts:
    """How far tokenising is: bytes of text, documents, tokens, rejected rows."""

    num_bytes: int = 0
    documents: int = 0
    tokens: int = 0
    rejected: int = 0


Tick = Callable[[Counts], None]
"""Told every now and then of what has been done since the call."""


def wait_for(futures: Sequence[Future[Any]], tick: Callable[[], None]) -> None:
    """Wait for futures, ticking; the first error ends the wait."""
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=TICK_SECONDS, return_when="FIRST_COMPLETED")
        for future in done:
            future.result()
        tick()
