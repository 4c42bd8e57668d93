"""Errors for users, each with the exit code of the command line and of the trainer."""


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
