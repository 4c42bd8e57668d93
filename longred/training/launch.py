"""The parent's side: start the trainer, follow it, pass signals on, and name how it ended.

A trainer of several processes is started by a launcher, which hands no pipes down: the pipes have
names. Its first process speaks for all.
"""

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from longred.errors import BY_EXIT_CODE, LongredError, LostProcessError, Stopped
from longred.method.job import TrainingJob
from longred.progress import Progress, duration
from longred.store.artifacts import storage_errors, write_json
from longred.training.stop import SIGNALS

log = logging.getLogger(__name__)

LOG_NAME = "trainer.log"
LAUNCHER = "LONGRED_LAUNCHER"
"""Variable of a command that starts all processes of a trainer, in place of accelerate's.

`-m longred.training` and its arguments are put behind it, as torchrun wants them. A variable and no
setting, so that no recipe can name a command.
"""


class PausedError(LongredError):
    """The trainer took the steps that it was asked for, and saved; the same training can go on.

    Args:
        work: the training's work folder.
    """

    def __init__(self, work: Path) -> None:
        super().__init__(f"{work}: paused as it was asked to; run the recipe to go on")
        self.work = work


def run(
    job: TrainingJob,
    work: Path,
    *,
    on_progress: Progress | None = None,
    stop_after: int | None = None,
) -> Path:
    """Train in child processes; a second call goes on where the first one stopped.

    The child writes everything it says to `work/trainer.log`. It saves and ends by itself when this
    process dies, in whatever way.

    Args:
        job: what to train.
        work: folder of the training's progress; made if needed.
        on_progress: called with (step, num_steps, text) as steps finish.
        stop_after: steps after which to save and pause; None for the whole training.

    Returns:
        `work/result`, as `longred.training.loop.train` wrote it.

    Raises:
        NonFiniteLossError, StorageError, LockedError, MismatchError, PreflightError, ConfigError:
            as the child said; the first also for spikes of the loss.
        Stopped: a signal ended it; progress is saved.
        PausedError: it has taken `stop_after` steps, and not all.
        LostProcessError: it was killed or crashed; the message has the end of its log.
    """
    with storage_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    write_json(work / "job.json", job.to_json())
    steps = 0

    def count(step: int, num_steps: int, text: str) -> None:
        nonlocal steps
        steps += 1
        if on_progress is not None:
            on_progress(step, num_steps, text)

    with _child(job, work, stop_after) as child, _signals_to(child) as received:
        end = _follow(child.progress, job, count)
        code = child.process.wait()
    if received:
        raise Stopped(received[0])
    if stop_after is not None and steps >= stop_after and code:
        error = _error(end.get("exit_code", code), end.get("error", ""), work / LOG_NAME)
        raise PausedError(work) if isinstance(error, Stopped) else error
    if code != 0:
        raise _error(end.get("exit_code", code), end.get("error", ""), work / LOG_NAME)
    return work / "result"


class _Child(NamedTuple):
    """A trainer: its process, or that of its launcher, and this side's ends of its pipes."""

    process: "subprocess.Popen[bytes]"
    liveness: int
    progress: int


@contextlib.contextmanager
def _child(job: TrainingJob, work: Path, stop_after: int | None = None) -> Iterator[_Child]:
    """Start the trainer, and never leave it running."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="longred-")))
        for name in ("liveness", "progress"):
            os.mkfifo(folder / name)
        # The kernel closes the first when this process dies; the second ends when the trainer does.
        liveness = os.open(folder / "liveness", os.O_RDWR)
        closing = stack.enter_context(contextlib.ExitStack())
        closing.callback(os.close, liveness)
        progress = os.open(folder / "progress", os.O_RDONLY | os.O_NONBLOCK)
        stack.callback(os.close, progress)
        write_end = os.open(folder / "progress", os.O_WRONLY)
        os.set_blocking(progress, True)
        arguments = [str(work / "job.json"), "--pipes", str(folder), "--parent", str(os.getpid())]
        if stop_after is not None:
            arguments += ["--stop-after", str(stop_after)]
        num_processes = job.layout.num_processes
        try:
            with (work / LOG_NAME).open("ab") as output:
                process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                    [*_launcher(num_processes), "-m", "longred.training", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(write_end,),
                    env={**os.environ, "HF_HUB_OFFLINE": "1"},
                    # Ctrl-C reaches the whole group; the parent alone decides what it means.
                    start_new_session=True,
                )
        finally:
            os.close(write_end)
        try:
            yield _Child(process, liveness, progress)
        finally:
            closing.close()
            if process.poll() is None:
                # A launcher would give its processes seconds; the closed pipe gives them a step.
                if num_processes == 1:
                    process.terminate()
                process.wait()


def _launcher(num_processes: int) -> list[str]:
    if num_processes == 1:
        return [sys.executable]
    if os.environ.get(LAUNCHER):
        return shlex.split(os.environ[LAUNCHER])
    options = {
        "num_processes": str(num_processes),
        "num_machines": "1",
        "main_process_port": "0",  # a free one
        # What the trainer decides itself, whatever this machine's settings of accelerate say.
        "mixed_precision": "no",
        "dynamo_backend": "no",
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    return [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *flags]


@contextlib.contextmanager
def _signals_to(child: _Child) -> Iterator[list[int]]:
    """Tell the child of SIGTERM and SIGINT while it runs; yield the list of those received.

    A host that handles a signal itself (an orchestrator) keeps its handler: when that raises, the
    child is ended on the way out.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        os.write(child.liveness, bytes([number]))

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


def _follow(progress: int, job: TrainingJob, on_progress: Progress | None) -> dict[str, Any]:
    """Pass the child's progress on until it ends; return how it says that it ended, if it did."""
    end: dict[str, Any] = {}
    with os.fdopen(progress, encoding="utf-8", closefd=False) as lines:
        for line in lines:
            event = json.loads(line)
            if "error" in event:
                end = event
            if on_progress is not None and "step" in event:
                on_progress(event["step"], job.num_steps, _text(job.method, event["metrics"]))
    return end


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
