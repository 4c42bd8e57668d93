"""Errors for users, each with an exit code, and how values and paths are worded in messages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

MESSAGE_CHARACTERS = 600
"""Most characters of one problem in a message."""


class LongredError(Exception):
    """A problem that the user can act on; its message names what is wrong and what to do.

    Attributes:
        exit_code: process exit status when the error ends a command or the trainer.
    """

    exit_code = 1


class ConfigError(LongredError, ValueError):
    """Usage or configuration is wrong; the message names the dotted key."""

    exit_code = 2


class PreflightError(LongredError):
    """The environment lacks a model, a free port, disk space at the start, or a package."""

    exit_code = 3


class StorageError(LongredError):
    """Writing failed while running; finished work is intact."""

    exit_code = 4


class NonFiniteLossError(LongredError):
    """A loss, gradient or measurement is NaN or infinite; raised before it is used."""

    exit_code = 5


class LossSpikeError(LongredError):
    """The loss of a training rose sharply in several steps in a row."""

    exit_code = 5


class LockedError(LongredError):
    """Another process holds the lock of the same folder."""

    exit_code = 6


class MismatchError(LongredError):
    """Data, checkpoint or artifact differs from its record."""

    exit_code = 7


class LostProcessError(LongredError):
    """A process ended with no known exit code: killed, or an unexpected error."""


class Stopped(LongredError):
    """A signal stopped the process.

    Args:
        signal_number: the signal received; the exit code is 128 + its number.
        is_saved: whether progress was saved first.
    """

    def __init__(self, signal_number: int, *, is_saved: bool = True) -> None:
        progress = (
            "progress is saved" if is_saved else "nothing was saved since the last checkpoint"
        )
        super().__init__(
            f"stopped by signal {signal_number}; {progress}, run the same command to go on"
        )
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


BY_EXIT_CODE: dict[int, type[LongredError]] = {
    error.exit_code: error
    for error in (
        ConfigError,
        PreflightError,
        StorageError,
        NonFiniteLossError,
        LockedError,
        MismatchError,
    )
}
"""Exit status of the trainer → the error that its parent process raises."""


def shown(value: Any, limit: int = 60) -> str:
    """Return a value of a recipe as a message shows it: as YAML on one line, printable, short.

    Args:
        value: a plain value, as JSON has them.
        limit: most characters; the rest is cut off, and the full length is said.
    """
    text = _as_yaml(value)
    # A cut text is not searched to its end for unprintable characters.
    start = text[: limit + 1]
    start = "".join(c if c.isprintable() else repr(c)[1:-1] for c in start)
    if len(start) <= limit and len(text) <= limit:
        return start
    return f"{start[: limit - 20]}… ({len(text):,} characters)"


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_as_yaml, value)) + "]"
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"{'-' if value < 0 else ''}a number of {value.bit_length()} bits"
    return str(value) if value != "" else '""'


def shorten(message: str, limit: int = MESSAGE_CHARACTERS) -> str:
    """Return a message of at most `limit` characters; the middle is left out of a longer one."""
    if len(message) <= limit:
        return message
    # The key stands at the start, what to do at the end.
    end = limit // 3
    return f"{message[: limit - end - 3]} … {message[-end:]}"


def where_paths_start(path: str | Path) -> str:
    """Return where a relative path was looked for, to end a message; empty for other paths."""
    text = str(path)
    if Path(text).is_absolute() or text.startswith("~") or "://" in text:
        return ""
    return f" (relative paths start in the working directory, {Path.cwd()})"
