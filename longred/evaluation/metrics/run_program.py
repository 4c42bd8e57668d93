"""Runs one program that a model wrote; `code.run_program` starts it as a process of its own.

Reads a job as JSON from standard input, and writes `passed`, `timed out` or `failed: …` to the
job's file of the outcome. Imports nothing outside of the standard library.
"""

import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any


class _TimeIsUp(BaseException):
    """Not an `Exception`, which programs often catch."""


def main() -> None:
    """Run the program of the job in standard input."""
    job: dict[str, Any] = json.load(sys.stdin)
    limits = {
        resource.RLIMIT_AS: job["memory_bytes"],
        resource.RLIMIT_FSIZE: job["file_bytes"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: int(job["seconds"]) + 30,
    }
    for limit, value in limits.items():
        _, highest = resource.getrlimit(limit)
        # No process may raise a lower limit of its batch job.
        value = value if highest == resource.RLIM_INFINITY else min(value, highest)
        resource.setrlimit(limit, (value, value))
    outcome = _outcome(job["program"], job["seconds"])
    Path(job["outcome"]).write_text(outcome, encoding="utf-8", errors="backslashreplace")


def _outcome(program: str, seconds: float) -> str:
    """Execute a program; return how it ended."""
    is_late = False

    def stop(number: int, frame: Any) -> None:
        nonlocal is_late
        is_late = True
        raise _TimeIsUp

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        exec(compile(program, "program", "exec"), {})  # noqa: S102 - what this process is for
        outcome = "passed"
    except BaseException as error:  # also SystemExit: a program that ends early fails its tests
        outcome = f"failed: {type(error).__name__}: {error}"[:500]
    signal.setitimer(signal.ITIMER_REAL, 0)
    return "timed out" if is_late else outcome


if __name__ == "__main__":
    main()
