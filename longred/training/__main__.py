"""The trainer's process: `python -m longred.training WORK/job.json` trains in WORK."""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from longred.artifacts import read_json
from longred.errors import LongredError
from longred.training.job import TrainingJob
from longred.training.stop import StopRequest, only_trainer

log = logging.getLogger("longred.training")


class Reporter:
    """Sends the parent one JSON line a step, and the last error; silent where there is no parent.

    Args:
        descriptor: write end of a pipe, or None.
    """

    def __init__(self, descriptor: int | None) -> None:
        self.descriptor = descriptor
        if descriptor is not None:
            os.set_blocking(descriptor, False)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report a finished step; dropped where the parent does not keep up, the journal has it."""
        self._send({"step": step, "metrics": dict(metrics)})

    def error(self, message: str) -> None:
        """Report why the training ended."""
        self._send({"error": message[:3000]})

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
        "--liveness-fd", type=int, help="pipe whose end of file means that the parent died"
    )
    parser.add_argument("--progress-fd", type=int, help="pipe for one JSON line a step")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    stop = StopRequest(options.liveness_fd)
    stop.install()
    reporter = Reporter(options.progress_fd)
    work = options.job.resolve().parent
    parent = None if options.liveness_fd is None else os.getppid()
    try:
        job = TrainingJob.from_json(read_json(options.job))
        with only_trainer(work, parent=parent):
            # Imported here: a signal during these seconds is remembered already.
            from longred.training.loop import train

            train(job, work, on_step=reporter.step, stop_requested=stop)
    except LongredError as error:
        log.error("%s", error)
        reporter.error(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
