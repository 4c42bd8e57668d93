"""Options, store lookup and table printing shared by the verbs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from longred.store.artifacts import Store

Overrides = Annotated[
    list[str] | None, typer.Argument(help="changes to the recipe", metavar="[SECTION.KEY=VALUE]...")
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="the store (default: $LONGRED_STORE, else the folder outputs)"),
]


def open_store(path: str | None) -> "Store":
    """Open the store at `path`, else at $LONGRED_STORE, else at the default path."""
    from longred.runs.record import find_store
    from longred.store.artifacts import Store

    return Store(path) if path else find_store()


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
