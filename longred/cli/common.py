"""Options, store lookup, log lines and printing shared by the verbs; `results` prints scores."""

import logging
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from longred.errors import ConfigError, shown

if TYPE_CHECKING:
    from longred.store.artifacts import Store

Overrides = Annotated[
    list[str] | None, typer.Argument(help="changes to the recipe", metavar="SECTION.KEY=VALUE")
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="the store (default: $LONGRED_STORE, else the folder outputs)"),
]


class SettingsCommand(TyperCommand):
    """A verb that takes settings as arguments: says so when one is written like an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments of the verb.

        Raises:
            ConfigError: an option is unknown, and is the name of a setting.
        """
        options = {name for one in self.params for name in (*one.opts, *one.secondary_opts)}
        for number, argument in enumerate(args):
            option, separator, value = argument.partition("=")
            if option == "--":
                break
            if option.startswith("--") and option not in options:
                following = args[number + 1] if number + 1 < len(args) else "VALUE"
                _refuse_setting(option, value if separator else following)
        return super().parse_args(ctx, args)


def _refuse_setting(option: str, value: str) -> None:
    """Refuse an option that is written like a setting.

    Raises:
        ConfigError: there is such a setting, or the option is a dotted key.
    """
    from longred.config.keys import settings_named

    name = option.lstrip("-")
    keys = settings_named(name) or ([name] if "." in name else [])
    if keys:
        written = " or ".join(f"{key}={shown(value)}" for key in keys)
        raise ConfigError(f"{shown(option, 200)}: no such option; write the setting as {written}")


class StandardError(logging.Handler):
    """Writes log lines to the present standard error.

    A live display replaces it while it is shown, and prints what is written above itself.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        sys.stderr.write(self.format(record) + "\n")


def open_store(path: str | None) -> "Store":
    """Open the store at `path`, else at $LONGRED_STORE, else at the default path."""
    from longred.runs.record import find_store, refuse_file
    from longred.store.artifacts import Store

    if not path:
        return find_store()
    refuse_file(path, "--store")
    return Store(path)


def print_facts(facts: Mapping[str, str | None]) -> None:
    """Print names and values, those that have one; long values take several lines on a terminal."""
    for name, value in facts.items():
        if value:
            print_indented(f"{name:<9}", value)


def print_indented(head: str, text: str) -> None:
    """Print a text after a head; on a terminal, its further lines are indented by the head's width.

    A path or a setting stays in one piece, so that it can be copied.
    """
    lines = [text]
    if sys.stdout.isatty() and "\n" not in text:
        width = max(20, shutil.get_terminal_size().columns - len(head))
        lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    typer.echo(head + ("\n" + " " * len(head)).join(lines))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; numeric columns are right-aligned."""
    if not rows:
        return
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if rows[0][n].replace(",", "").isdigit() else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo("  ".join(cells).rstrip())
    typer.echo("")
