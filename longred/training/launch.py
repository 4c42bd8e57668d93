"""The parent's side: start the trainer, follow it, pass signals on, and name how it ended."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from longred.artifacts import storage_errors, write_json
from longred.errors import BY_EXIT_CODE, LongredError, Stopped
from longred.progress import Progress, duration
from longred.training.job import TrainingJob
from longred.training.stop import SIGNALS

log = logging.getLogger(__name__)

LOG_NAME = "trainer.log"


class LostProcessError(LongredError):
    """The trainer ended without an exit code of the house: killed, or an error nobody foresaw."""


def run(job: TrainingJob, work: Path, *, on_progress: Progress | None = None) -> Path:
    """Train in a child process; a second call goes on where the first one stopped.

    The child writes everything it says to `work/trainer.log`. It saves and ends by itself when this
    process dies, in whatever way.

    Args:
        job: what to train.
        work: folder of the training's progress; made if needed.
        on_progress: called with (step, num_steps, text) as steps finish.

    Returns:
        `work/result`, as `longred.training.loop.train` wrote it.

    Raises:
        NonFiniteLossError, StorageError, LockedError, MismatchError, PreflightError, ConfigError:
            as the child said; the first also for spikes of the loss.
        Stopped: a signal ended it; progress is saved.
        LostProcessError: it was killed or crashed; the message has the end of its log.
    """
    with storage_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    write_json(work / "job.json", job.to_json())
    with _child(work) as (process, progress), _signals_to(process) as received:
        message = _follow(progress, job, on_progress)
        code = process.wait()
    if received:
        raise Stopped(received[0])
    if code != 0:
        raise _error(code, message, work / LOG_NAME)
    return work / "result"


@contextlib.contextmanager
def _child(work: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start the trainer; yield it and the read end of its progress pipe; never leave it running."""
    liveness_read, liveness_write = os.pipe()
    progress_read, progress_write = os.pipe()
    command = [sys.executable, "-m", "longred.training", str(work / "job.json")]
    command += ["--liveness-fd", str(liveness_read), "--progress-fd", str(progress_write)]
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, progress_read)
        try:
            with (work / LOG_NAME).open("ab") as output:
                process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(liveness_read, progress_write),
                    env={**os.environ, "HF_HUB_OFFLINE": "1"},
                    # Ctrl-C reaches the whole group; the parent alone decides what it means.
                    start_new_session=True,
                )
        except BaseException:
            os.close(liveness_write)
            raise
        finally:
            os.close(liveness_read)
            os.close(progress_write)
        try:
            yield process, progress_read
        finally:
            os.close(liveness_write)
            if process.poll() is None:
                process.terminate()
                process.wait()


@contextlib.contextmanager
def _signals_to(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Pass SIGTERM and SIGINT on to the child while it runs; yield the list of those received.

    A host that handles a signal itself (an orchestrator) keeps its handler: when that raises, the
    child is ended on the way out.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.send_signal(number)

    defaults = (signal.SIG_DFL, signal.default_int_handler)
    previous: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) in defaults:
                previous[number] = signal.signal(number, forward)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _follow(progress: int, job: TrainingJob, on_progress: Progress | None) -> str:
    """Pass the child's progress on until it ends; return its error message, if it sent one."""
    message = ""
    with os.fdopen(progress, encoding="utf-8", closefd=False) as lines:
        for line in lines:
            event = json.loads(line)
            message = event.get("error", message)
            if on_progress is not None and "step" in event:
                on_progress(event["step"], job.num_steps, _text(job.method, event["metrics"]))
    return message


def _text(method: str, metrics: dict[str, float]) -> str:
    parts = ", ".join(
        f"{key.removeprefix('train/').removesuffix('_loss')} {value:.4f}"
        for key, value in metrics.items()
        if key.endswith("_loss")
    )
    spike = " (a spike)" if "train/loss_spike" in metrics else ""
    return (
        f"{method}: loss {metrics['train/loss']:.4f}{spike} ({parts}), "
        f"gradient {metrics['train/grad_norm']:.3g}, "
        f"{metrics['train/tokens_per_second']:,.0f} tokens/s, MFU {metrics['train/mfu']:.2f}, "
        f"{metrics['train/peak_memory_bytes'] / 2**30:.1f} GiB, "
        f"{duration(metrics['train/eta_seconds'])} left"
    )


def _error(code: int, message: str, log_path: Path) -> LongredError:
    signal_number = code - 128
    if signal_number in SIGNALS:
        return Stopped(signal_number)
    if code in BY_EXIT_CODE and message:
        return BY_EXIT_CODE[code](message)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    hint = " (often the system, for want of memory)" if code == -signal.SIGKILL else ""
    tail = "\n".join(log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    return LostProcessError(
        f"the trainer {how}{hint}; saved steps are kept, run the same command to go on. "
        f"End of {log_path}:\n{tail}"
    )
