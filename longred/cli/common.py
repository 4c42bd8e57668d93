"""Options, store lookup, log lines and printing shared by the verbs; `results` prints scores."""

import logging
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from longred.store.artifacts import Store

Overrides = Annotated[
    list[str] | None, typer.Argument(help="changes to the recipe", metavar="[SECTION.KEY=VALUE]...")
]
StoreOption = Annotated[str | None, typer.Option("--store", help="the store (default: outputs)")]


class StandardError(logging.Handler):
    """Writes log lines to the present standard error.

    A live display replaces it while it is shown, and prints what is written above itself.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        sys.stderr.write(self.format(record) + "\n")


def open_store(path: str | None) -> "Store":
    """Open the store at `path`, else at $LONGRED_STORE, else at the default path."""
    from longred.runs.record import find_store
    from longred.store.artifacts import Store

    return Store(path) if path else find_store()


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
