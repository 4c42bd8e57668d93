"""The parent's side: start the trainer, follow its progress, forward signals, and name its error.

Several processes are started by accelerate's launcher, which is torch's elastic agent
(`torch.distributed.run`). What this module adds is what the agent cannot do, and a single process
needs no agent and no rendezvous. An agent's processes survive the death (kill -9) of the process
that runs it; a trainer notices it by its pipe, saves and exits. An agent that is stopped kills its
processes 30 seconds after SIGTERM, but a save alone may take minutes; a byte in the pipe lets the
micro-batch end and the last step be saved. An agent reports an exit code of its own; the first
process reports its error, exit code and progress through named pipes, because launchers pass no
descriptors on.
`elastic_launch` in the parent would also import torch there and use its main thread.
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

from longred.errors import BY_EXIT_CODE, LongredError, LostProcessError, Stopped
from longred.method.job import TrainingJob
from longred.progress import Progress, duration
from longred.store.artifacts import storage_errors, write_json
from longred.training.stop import REPLACEABLE, SIGNALS, announce

log = logging.getLogger(__name__)

LOG_NAME = "trainer.log"
LAUNCHER = "LONGRED_LAUNCHER"
"""Environment variable with a command that starts all processes of a trainer instead of accelerate.

`-m longred.training` and its arguments are appended, as torchrun expects. It is not a setting, so
that no recipe can name a command.
"""


class PausedError(LongredError):
    """The trainer took the requested number of steps and saved; the training can be resumed.

    Args:
        work: the training's work folder.
    """

    def __init__(self, work: Path) -> None:
        super().__init__(f"{work}: paused as requested; run the recipe to resume")
        self.work = work


def run(
    job: TrainingJob,
    work: Path,
    *,
    on_progress: Progress | None = None,
    stop_after: int | None = None,
) -> Path:
    """Train in child processes; a second call resumes where the first one stopped.

    The child writes its output to `work/trainer.log`. It saves and exits when this process dies,
    in whatever way.

    Args:
        job: what to train.
        work: folder of the training's progress; created if missing.
        on_progress: called with (step, num_steps, text) after each step, and within long ones.
        stop_after: number of steps after which to save and pause; None for the whole training.

    Returns:
        `work/result`, written by `longred.training.loop.train`.

    Raises:
        NonFiniteLossError, StorageError, LockedError, MismatchError, PreflightError, ConfigError:
            as raised by the child; the first one also for loss spikes.
        Stopped: a signal ended it; progress is saved.
        PausedError: it has taken `stop_after` steps, and not all.
        LostProcessError: it was killed or crashed; the message has the end of its log.
    """
    with storage_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    write_json(work / "job.json", job.to_json())
    num_steps = 0
    end: dict[str, Any] = {}
    with _child(job, work, stop_after) as child, _forwarded_signals(child) as received:
        for event in map(json.loads, child.progress):
            if "error" in event:
                end = event
                continue
            num_steps += "metrics" in event
            if on_progress is not None:
                on_progress(event["step"], job.num_steps, _text(job.method, event))
        code = child.process.wait()
    if received:
        raise Stopped(received[0], is_saved=received.count(signal.SIGINT) < 2)
    if code == 0:
        return work / "result"
    error = _error(end.get("exit_code", code), end.get("error", ""), work / LOG_NAME)
    if stop_after is not None and num_steps >= stop_after and isinstance(error, Stopped):
        raise PausedError(work)
    raise error


class _Child(NamedTuple):
    """The process of the trainer or its launcher, and this side's ends of its pipes."""

    process: "subprocess.Popen[bytes]"
    liveness: IO[bytes]
    progress: IO[str]


@contextlib.contextmanager
def _child(job: TrainingJob, work: Path, stop_after: int | None) -> Iterator[_Child]:
    """Start the trainer; end it with the block."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="longred-")))
        for name in ("liveness", "progress"):
            os.mkfifo(folder / name)
        # The kernel closes the first when this process dies; the second ends when the trainer does.
        liveness = stack.enter_context((folder / "liveness").open("r+b", buffering=0))
        descriptor = os.open(folder / "progress", os.O_RDONLY | os.O_NONBLOCK)
        progress = stack.enter_context(open(descriptor, encoding="utf-8"))
        write_end = stack.enter_context((folder / "progress").open("wb", buffering=0))
        os.set_blocking(descriptor, True)
        num_processes = job.layout.num_processes
        command = [*_launcher(num_processes), "-m", "longred.training", str(work / "job.json")]
        command += ["--pipes", str(folder), "--parent", str(os.getpid())]
        if stop_after is not None:
            command += ["--stop-after", str(stop_after)]
        with (work / LOG_NAME).open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end.fileno(),),
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                # Ctrl-C reaches the whole group; only the parent decides what it means.
                start_new_session=True,
            )
        write_end.close()
        try:
            yield _Child(process, liveness, progress)
        finally:
            liveness.close()
            if process.poll() is None:
                # A signal to a launcher would kill its processes soon; the closed pipe lets them
                # save.
                if num_processes == 1:
                    process.terminate()
                process.wait()


def _launcher(num_processes: int) -> list[str]:
    if num_processes == 1:
        return [sys.executable]
    if os.environ.get(LAUNCHER):
        return shlex.split(os.environ[LAUNCHER])
    # Port 0 is a free one. The trainer itself decides what follows it, whatever this machine's
    # accelerate config says.
    flags = "--num_machines=1 --main_process_port=0 --mixed_precision=no --dynamo_backend=no"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    return [*launcher, f"--num_processes={num_processes}", *flags.split()]


@contextlib.contextmanager
def _forwarded_signals(child: _Child) -> Iterator[list[int]]:
    """Write SIGTERM and SIGINT into the child's pipe; yield the list of those received.

    A second SIGINT kills the child, since it is a user who will not wait for the save. A second
    SIGTERM changes nothing: schedulers repeat it.

    A host that handles a signal itself (an orchestrator) keeps its handler; if that raises, the
    child is ended by `_child`.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if received.count(signal.SIGINT) > 1:
            announce("stopping without saving")
            _kill(child.process.pid)
            return
        again = "; Ctrl-C again: stop without saving" if number == signal.SIGINT else ""
        announce(f"stopping after this micro-batch, then saving{again}")
        child.liveness.write(bytes([number]))

    previous: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) in REPLACEABLE:
                previous[number] = signal.signal(number, forward)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _kill(pid: int) -> None:
    """Kill a process and all below it; a launcher's processes are in sessions of their own."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def _text(method: str, event: Mapping[str, Any]) -> str:
    """Return one line about a step; it begins with what a narrow screen must show."""
    if "batches" in event:
        done, total = event["batches"]
        return f"{method}: micro-batch {done + 1} of {total} of step {event['step'] + 1}"
    metrics: Mapping[str, float] = event["metrics"]
    parts = ", ".join(
        f"{key.removeprefix('train/').removesuffix('_loss')} {value:.4f}"
        for key, value in metrics.items()
        if key.endswith("_loss")
    )
    spike = " (a spike)" if "train/loss_spike" in metrics else ""
    return (
        f"{metrics['train/tokens_per_second']:,.0f} tokens/s, "
        f"{method}: loss {metrics['train/loss']:.4f}{spike} ({parts}), "
        f"gradient {metrics['train/grad_norm']:.3g}, "
        f"MFU {metrics['train/mfu']:.2f}, "
        f"{metrics['train/peak_memory_bytes'] / 2**30:.1f} GiB, "
        f"{duration(metrics['train/eta_seconds'])} left"
    )


def _error(code: int, message: str, log_path: Path) -> LongredError:
    """Return the error of a trainer that exited with a code other than 0."""
    if code - 128 in SIGNALS:
        return Stopped(code - 128)
    if code in BY_EXIT_CODE and message:
        return BY_EXIT_CODE[code](message)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    hint = " (often by the system, out of memory)" if code == -signal.SIGKILL else ""
    tail = "\n".join(log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    return LostProcessError(
        f"the trainer {how}{hint}; saved steps are kept, run the same command to go on. "
        f"End of {log_path}:\n{tail}"
    )
