"""pass@k of programs that a model writes (arXiv 2107.03374), each run in a process of its own.

The programs have this machine's files and network: allow them only where that is safe.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from longred.errors import PreflightError

TIMEOUT_SECONDS = 3.0
"""Wall-clock time of one program, as in the `evaluate` package."""
START_SECONDS = 30.0
"""Most that a process may take to start and to end, on a machine with other work."""
MEMORY_BYTES = 4 * 2**30
FILE_BYTES = 64 * 2**20
_RUNNER = Path(__file__).with_name("run_program.py")


class CodeEval:
    """The metric `code_eval` of the `evaluate` package.

    Raises:
        PreflightError: this machine cannot run programs.
    """

    def __init__(self) -> None:
        outcome = run_program("")
        if outcome != "passed":
            raise PreflightError(
                "evaluation.short.allow_code_execution: an empty program does not run on this "
                f"machine ({outcome}); set it to false, and leave the tasks that run code out with "
                "evaluation.short.tasks or on_missing=skip"
            )

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int = 4,
        timeout: float = TIMEOUT_SECONDS,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """Run every program with the tests of its question, and estimate pass@k.

        Args:
            references: tests of each question, as Python code.
            predictions: programs of each question.
            k: numbers of programs, of which one must pass.
            num_workers: programs that run at the same time.
            timeout: seconds of one program.

        Returns:
            `pass@k` of every k that no question has fewer programs than; and number of the question
            -> (number of the program, with `passed` and `result`) of each program.
        """
        jobs = [
            (task, number, f"{program}\n{tests}")
            for task, (programs, tests) in enumerate(zip(predictions, references, strict=True))
            for number, program in enumerate(programs)
        ]
        with ThreadPoolExecutor(max_workers=num_workers) as pool:
            outcomes = list(pool.map(lambda job: run_program(job[2], timeout), jobs))
        details: dict[int, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        for (task, number, _), outcome in zip(jobs, outcomes, strict=True):
            found = {"task_id": task, "completion_id": number, "result": outcome}
            details[task].append((number, {**found, "passed": outcome == "passed"}))
        counts = [
            (len(programs), sum(outcome["passed"] for _, outcome in details[task]))
            for task, programs in enumerate(predictions)
        ]
        rates = {
            f"pass@{size}": sum(pass_at_k(n, c, size) for n, c in counts) / len(counts)
            for size in k
            if all(total >= size for total, _ in counts)
        }
        return rates, details


def pass_at_k(num_programs: int, num_passed: int, k: int) -> float:
    """Return the unbiased estimate of pass@k: the chance that k of the programs hold a right one.

    1 - C(n - c, k) / C(n, k), equation 1 of arXiv 2107.03374.
    """
    return 1.0 - math.comb(num_programs - num_passed, k) / math.comb(num_programs, k)


def run_program(program: str, timeout: float = TIMEOUT_SECONDS) -> str:
    """Run a Python program in a process of its own, in an empty temporary folder.

    The process has limits of time, memory and file size, neither input nor output, and none of this
    process's environment, which may hold keys. What it starts ends with it, except in a session of
    its own.

    Args:
        program: Python code; it passes if it runs to its end without an exception.
        timeout: seconds that it may take.

    Returns:
        `passed`, `timed out`, or `failed: ` and what was raised.

    Raises:
        PreflightError: no Python process can be started.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        outcome = Path(folder) / "outcome"
        inner = Path(folder) / "work"
        inner.mkdir()
        job = {
            "program": program,
            "outcome": str(outcome),
            "seconds": timeout,
            "memory_bytes": MEMORY_BYTES,
            "file_bytes": FILE_BYTES,
        }
        environment = {"HOME": str(inner), "TMPDIR": str(inner), "PATH": os.defpath}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            process = subprocess.Popen(  # noqa: S603 - the caller allowed it
                [sys.executable, "-I", str(_RUNNER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=inner,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise PreflightError(
                f"evaluation.short.allow_code_execution: no process can be started ({error})"
            ) from error
        try:
            process.communicate(json.dumps(job).encode(), timeout=timeout + START_SECONDS)
        except subprocess.TimeoutExpired:
            return "timed out"
        finally:
            _end(process)
        if outcome.is_file():
            return outcome.read_text(encoding="utf-8")
        return f"failed: the process ended with status {process.returncode}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything of its session."""
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
