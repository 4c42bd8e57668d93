"""What the verbs share."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from longred.store.artifacts import Store

Overrides = Annotated[
    list[str] | None, typer.Argument(help="changes to the recipe", metavar="[SECTION.KEY=VALUE]...")
]
StoreOption = Annotated[str | None, typer.Option("--store", help="the store (default: outputs)")]


def open_store(path: str | None) -> "Store":
    """Return the store that is named, else the environment's, else the default one."""
    from longred.config import StoreConfig
    from longred.runs.record import STORE_VARIABLE
    from longred.store.artifacts import Store

    return Store(path or os.environ.get(STORE_VARIABLE) or StoreConfig().path)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns; numbers stand at the right."""
    if not rows:
        return
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if _is_number(rows[0][n]) else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo("  ".join(cells).rstrip())
    typer.echo("")


def _is_number(text: str) -> bool:
    return text.replace(",", "").isdigit()
