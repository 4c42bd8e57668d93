"""The trainer's process: `python -m longred.training WORK/job.json` trains in WORK.

Started by torchrun, accelerate launch or srun, several of these processes train together.
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from longred.errors import LongredError
from longred.method.job import TrainingJob
from longred.store.artifacts import read_json
from longred.training.stop import StopRequest, only_trainer

log = logging.getLogger("longred.training")


BATCH_SECONDS = 10.0
"""Least time between two reports of a micro-batch, so that only long steps have any."""


def main(arguments: list[str] | None = None) -> int:
    """Train the job of a file in the file's folder; return the exit code (`longred.errors`)."""
    parser = argparse.ArgumentParser(prog="python -m longred.training", description=__doc__)
    parser.add_argument(
        "job", type=Path, help="JSON file of a TrainingJob; its folder is the work folder"
    )
    parser.add_argument(
        "--pipes",
        type=Path,
        help="folder of two named pipes: the end of `liveness` means that the parent died, a byte "
        "in it is a signal; `progress` receives one JSON line per step, and some between",
    )
    parser.add_argument("--stop-after", type=int, help="save and exit after this many steps")
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
    progress = _open(pipes, "progress", os.O_WRONLY)
    stop = StopRequest(liveness, max_steps=options.stop_after or None)
    stop.install()
    if pipes is not None and liveness is None:
        stop.signal_number = int(signal.SIGTERM)

    def report(event: Mapping[str, object]) -> None:
        # Lines shorter than PIPE_BUF are written whole or not at all. A parent that does not keep
        # up misses some: the journal has them.
        if progress is not None:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(progress, json.dumps(event).encode() + b"\n")

    try:
        job = TrainingJob.from_json(read_json(options.job))
        work = options.job.resolve().parent
        # Imported here: the imports take seconds, and signals are already handled.
        from longred.training.loop import train
        from longred.training.world import joined

        def on_step(step: int, metrics: Mapping[str, float]) -> None:
            stop.count_step()
            report({"step": step, "metrics": dict(metrics)})

        last = time.monotonic()

        def on_batch(step: int, done: int, total: int) -> None:
            nonlocal last
            is_due = done > 0 and time.monotonic() - last > BATCH_SECONDS
            if is_due:
                report({"step": step, "batches": [done, total]})
            if is_due or done == 0:
                last = time.monotonic()

        with joined(job.device) as world, contextlib.ExitStack() as stack:
            with world.together():
                if world.is_first:
                    stack.enter_context(only_trainer(work, parent=options.parent))
            train(job, work, on_step=on_step, on_batch=on_batch, stop_requested=stop, world=world)
    except LongredError as error:
        log.error("%s", error)
        # A launcher between this process and the parent does not pass exit codes on.
        report({"error": str(error)[:3000], "exit_code": error.exit_code})
        return error.exit_code
    return 0


def _open(pipes: Path | None, name: str, flags: int) -> int | None:
    """Open a pipe; None if it does not exist or the other side is gone."""
    if pipes is None:
        return None
    try:
        return os.open(pipes / name, flags | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENXIO):
            raise
        return None


if __name__ == "__main__":
    sys.exit(main())
