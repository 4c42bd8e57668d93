"""The `longred` command: one function per verb, registered in `VERBS`.

`runs` has demo, run and show; `services` up, down, status, deploy, doctor and reap; `study` has
study and report; `check`, `compare`, `config`, `data` (inspect), `drift`, `evaluation`, `export`,
`init` and `plan` one verb. `resolve` knows what the name of a run, model or data set means,
`common` has shared options and tables. `terminal` and `score_board` are the live displays,
`flow_host` the only way to the flows, `drift_text` the text that drift is measured on,
`first_recipe` and `first_text` what `init` derives and `recipe_text` its file, `child` the command
in a process that ends with its parent, `completion` what the shell completes, `usage` the words
for a wrong command line.

Results go to standard output, everything else to standard error. Heavy libraries are imported
inside the verbs that need them, so that every command starts fast.
"""

import logging
import signal
import sys
from collections.abc import Callable
from inspect import signature
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import longred
from longred.cli import (
    check,
    compare,
    config,
    data,
    drift,
    evaluation,
    export,
    init,
    plan,
    runs,
    services,
    study,
)
from longred.cli.common import SettingsCommand, StandardError
from longred.cli.completion import add_completions
from longred.cli.usage import CommandError, usage_error
from longred.errors import LongredError, Stopped
from longred.training.stop import interrupt

VERBS: dict[str, tuple[Callable[..., None], ...]] = {
    "Prepare": (init.init, config.config, plan.plan),
    "Run": (runs.demo, runs.run, study.study),
    "Look at what was made": (runs.show, compare.compare, study.report, data.inspect),
    "Work on any model": (check.check, drift.drift, evaluation.evaluate, export.export),
    "Services on this machine": (
        services.up,
        services.down,
        services.status,
        services.deploy,
        services.doctor,
        services.reap,
    ),
}
"""The verbs by their heading in `longred --help`."""

SUMMARY_CHARACTERS = 200
"""Space for a verb's first sentence, which may take several lines."""


class Verbs(TyperGroup):
    """The command, whose help lists the verbs under their headings; alone, it prints its help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the verb."""
        return super().parse_args(ctx, args or ["--help"])

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section per heading; all have one width."""
        width = max(map(len, self.commands))
        for heading, verbs in VERBS.items():
            commands = {verb.__name__: self.commands[verb.__name__] for verb in verbs}
            rows = [
                (name.ljust(width), command.get_short_help_str(SUMMARY_CHARACTERS))
                for name, command in commands.items()
            ]
            with formatter.section(heading):
                formatter.write_dl(rows)


app = typer.Typer(
    cls=Verbs,
    help="Extend a language model's context window and restore its short-text skill.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in VERBS.values():
    for verb in group:
        takes_settings = "overrides" in signature(verb).parameters
        add_completions(verb)
        app.command(cls=SettingsCommand if takes_settings else None)(verb)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"longred {longred.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="print the version and exit"
        ),
    ] = False,
) -> None:
    pass


def _end_on_sigterm(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def main() -> None:
    """Run the command; print an error as one line and exit with its code."""
    signal.signal(signal.SIGTERM, _end_on_sigterm)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    handler = StandardError()
    handler.setFormatter(logging.Formatter("longred: %(message)s"))
    logging.getLogger("longred").addHandler(handler)
    try:
        exit_code = app(standalone_mode=False)
    except (LongredError, CommandError) as error:
        verbs = [verb.__name__ for group in VERBS.values() for verb in group]
        shown = error if isinstance(error, LongredError) else usage_error(error, verbs)
        sys.stdout.flush()
        sys.stderr.write(f"longred: {shown}\n")
        sys.exit(shown.exit_code)
    # Without the standalone mode, typer returns the code of `typer.Exit`.
    sys.exit(exit_code if isinstance(exit_code, int) else 0)
