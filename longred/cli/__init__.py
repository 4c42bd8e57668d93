"""The `longred` command: one function per verb, registered in `VERBS`.

`runs` has demo, run and show; `services` up, down, status, deploy, doctor and reap; `compare`,
`data` (inspect), `drift`, `evaluation`, `export` and `plan` one verb each. `common` has shared
options and tables, `terminal` and `score_board` the live displays, `flow_host` the only way to the
flows, `drift_text` the text that drift is measured on.

Results go to standard output, everything else to standard error. Heavy libraries are imported
inside the verbs that need them, so that every command starts fast.
"""

import logging
import signal
import sys
from types import FrameType

import typer

from longred.cli import compare, data, drift, evaluation, export, plan, runs, services
from longred.cli.common import StandardError
from longred.errors import LongredError, Stopped
from longred.training.stop import interrupt

VERBS = (
    runs.demo,
    runs.run,
    runs.show,
    compare.compare,
    drift.drift,
    export.export,
    evaluation.evaluate,
    data.inspect,
    plan.plan,
    services.up,
    services.down,
    services.status,
    services.deploy,
    services.doctor,
    services.reap,
)

app = typer.Typer(
    help="Extend a language model's context window and restore its short-text skill.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in VERBS:
    app.command()(verb)


def _end_on_sigterm(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def main() -> None:
    """Run the command; print a `LongredError` as one line and exit with its code."""
    signal.signal(signal.SIGTERM, _end_on_sigterm)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    handler = StandardError()
    handler.setFormatter(logging.Formatter("longred: %(message)s"))
    logging.getLogger("longred").addHandler(handler)
    try:
        app()
    except LongredError as error:
        sys.stdout.flush()
        sys.stderr.write(f"longred: {error}\n")
        sys.exit(error.exit_code)
