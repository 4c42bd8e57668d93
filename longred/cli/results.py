"""Prints results: drawn tables that fit on a terminal, Markdown elsewhere."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod

    from longred.report.text_table import Table

GAP = 2
"""Characters between two columns of a drawn table."""


def print_markdown(text: str, console: "Console | None" = None) -> None:
    """Print a text with tables.

    Args:
        text: as `longred.report.tables.markdown_page` returns it.
        console: output; standard output by default.
    """
    from rich.console import Console
    from rich.text import Text

    from longred.report.text_table import read_blocks

    console = console or Console(highlight=False)
    if not console.is_terminal:
        typer.echo(text.rstrip() + "\n", file=console.file)
        return
    for block in read_blocks(text):
        if isinstance(block, str):
            console.print(Text(block), style="dim")
        else:
            print_table_that_fits(block, console)
        console.print()


def print_table_or_markdown(table: "Table", console: "Console | None" = None) -> None:
    """Draw a table on a terminal; print it as Markdown elsewhere."""
    print_markdown(table.markdown(), console)


def print_table_that_fits(table: "Table", console: "Console") -> None:
    """Draw a table; leave out its least important columns if the terminal is too narrow."""
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    from longred.report.names import by_importance

    heads = [_head(table, column) for column in range(len(table.header))]
    widths = [
        max(map(len, [*head.split("\n"), *(row[column] for row in table.rows)]))
        for column, head in enumerate(heads)
    ]
    shown = list(range(len(heads)))
    order = [table.header.index(name) for name in by_importance(table.header[1:])]
    while len(shown) > 2 and sum(widths[n] + GAP for n in shown) - GAP > console.width:
        shown.remove(order.pop())
    drawn = Drawn(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for column in shown:
        justify: JustifyMethod = "left" if column == 0 else "right"
        drawn.add_column(Text(heads[column]), justify=justify, vertical="bottom", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(Text(row[column]) for column in shown))
    console.print(drawn)
    left_out = [name for n, name in enumerate(table.header) if n not in shown]
    if left_out:
        text = f"too wide for {console.width} columns: {', '.join(left_out)}; `| cat` prints all"
        console.print(Text(text), style="yellow")


def _head(table: "Table", column: int) -> str:
    """Return a column's header, in several lines if it is wider than all cells."""
    head = table.header[column]
    is_wide = len(head) > max((len(row[column]) for row in table.rows), default=0)
    return head.replace(" ", "\n") if is_wide else head
