"""The `longred` command: one function per verb, registered in `VERBS`.

`runs` has demo, run and show; `services` up, down, status, deploy, doctor and reap; `compare`,
`config`, `data` (inspect), `drift`, `evaluation`, `export`, `init` and `plan` one verb each.
`common` has shared options and tables, `terminal` and `score_board` the live displays, `flow_host`
the only way to the flows, `drift_text` the text that drift is measured on, `first_recipe` what
`init` derives.

Results go to standard output, everything else to standard error. Heavy libraries are imported
inside the verbs that need them, so that every command starts fast.
"""

import logging
import signal
import sys
from inspect import signature
from types import FrameType

import typer

from longred.cli import compare, config, data, drift, evaluation, export, init, plan, runs, services
from longred.cli.common import SettingsCommand
from longred.errors import LongredError, Stopped

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
    config.config,
    init.init,
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
    app.command(cls=SettingsCommand if "overrides" in signature(verb).parameters else None)(verb)


def _end_on_sigterm(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def main() -> None:
    """Run the command; print a `LongredError` as one line and exit with its code."""
    signal.signal(signal.SIGTERM, _end_on_sigterm)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("longred: %(message)s"))
    logging.getLogger("longred").addHandler(handler)
    try:
        app()
    except LongredError as error:
        sys.stdout.flush()
        sys.stderr.write(f"longred: {error}\n")
        sys.exit(error.exit_code)
