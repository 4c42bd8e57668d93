"""The trainer's process: `python -m longred.training WORK/job.json` trains in WORK.

Started by torchrun, accelerate launch or srun, several of them train together.
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from longred.errors import LongredError
from longred.method.job import TrainingJob
from longred.store.artifacts import read_json
from longred.training.stop import StepLimit, StopRequest, only_trainer

log = logging.getLogger("longred.training")


class Reporter:
    """Sends the parent one JSON line a step, and the last error; silent where there is no parent.

    Args:
        descriptor: write end of a pipe that does not block, or None.
    """

    def __init__(self, descriptor: int | None) -> None:
        self.descriptor = descriptor

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report a finished step; dropped where the parent does not keep up, the journal has it."""
        self._send({"step": step, "metrics": dict(metrics)})

    def error(self, error: LongredError) -> None:
        """Report why the training ended; a launcher between does not pass exit codes on."""
        self._send({"error": str(error)[:3000], "exit_code": error.exit_code})

    def _send(self, value: Mapping[str, object]) -> None:
        if self.descriptor is None:
            return
        # A line below PIPE_BUF is written whole or not at all.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self.descriptor, json.dumps(value).encode() + b"\n")


def main(arguments: list[str] | None = None) -> int:
    """Train the job of a file in the file's folder; return the exit code of the house."""
    parser = argparse.ArgumentParser(prog="python -m longred.training", description=__doc__)
    parser.add_argument(
        "job", type=Path, help="JSON file of a TrainingJob; its folder is the work folder"
    )
    parser.add_argument(
        "--pipes",
        type=Path,
        help="folder of two pipes: the end of `liveness` means that the parent died, a byte in it "
        "is a signal; `progress` is told one JSON line a step",
    )
    parser.add_argument("--stop-after", type=int, help="save and end after so many steps")
    parser.add_argument("--parent", type=int, help="process that waits for this training")
    options = parser.parse_args(arguments)
    is_first = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(
        level=logging.INFO if is_first else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    pipes = options.pipes if is_first else None
    liveness = _open(pipes, "liveness", os.O_RDONLY)
    stop, reporter = StopRequest(liveness), Reporter(_open(pipes, "progress", os.O_WRONLY))
    stop.install()
    if pipes is not None and liveness is None:
        stop.signal_number = int(signal.SIGTERM)
    try:
        _train(options.job, stop, reporter, options.parent, options.stop_after)
    except LongredError as error:
        log.error("%s", error)
        reporter.error(error)
        return error.exit_code
    return 0


def _train(
    path: Path, stop: StopRequest, reporter: Reporter, parent: int | None, stop_after: int | None
) -> None:
    job = TrainingJob.from_json(read_json(path))
    work = path.resolve().parent
    # Imported here: a signal during these seconds is remembered already.
    from longred.training.loop import train
    from longred.training.world import joined

    with joined(job.device) as world, contextlib.ExitStack() as stack:
        with world.together():
            if world.is_first:
                stack.enter_context(only_trainer(work, parent=parent))
        limit = StepLimit(stop, stop_after or job.num_steps + 1)

        def on_step(step: int, metrics: Mapping[str, float]) -> None:
            limit.count()
            reporter.step(step, metrics)

        train(job, work, on_step=on_step, stop_requested=limit, world=world)


def _open(pipes: Path | None, name: str, flags: int) -> int | None:
    """Open a pipe; None where there is none, or the other side is gone."""
    if pipes is None:
        return None
    try:
        return os.open(pipes / name, flags | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return None
        raise


if __name__ == "__main__":
    sys.exit(main())
