"""`longred compare`: prints the settings and scores of several runs side by side."""

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longred.cli.common import StoreOption, open_store, print_indented
from longred.cli.results import print_table_or_markdown

if TYPE_CHECKING:
    from longred.report.compare import Row, RunComparison


def compare(
    run_ids: Annotated[
        list[str],
        typer.Argument(metavar="RUN RUN...", help="ids of runs (or their start), or `latest`"),
    ],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="write an HTML page")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    store: StoreOption = None,
) -> None:
    """Compare runs: their results, the settings that differ, then the scores of each model."""
    from longred.cli.resolve import find_run
    from longred.report.compare import compare as compare_runs

    folder = open_store(store)
    comparison = compare_runs([find_run(folder, run_id) for run_id in run_ids])
    if html is not None:
        _write_page(comparison, html)
        typer.echo(f"page     {html}", err=True)
    if as_json:
        typer.echo(json.dumps(comparison.to_json(), indent=2))
    elif html is None:
        _print(comparison)


def _print(comparison: "RunComparison") -> None:
    letters = comparison.letters
    for letter, run in zip(letters, comparison.runs, strict=True):
        origin = f", from {run.origin}" if run.origin else ""
        words = " ".join([run.recipe, *run.overrides])
        typer.echo(f"{letter}  {run.id}  ({run.status}{origin})")
        print_indented("   ", words)
    typer.echo("")
    if comparison.results:
        print_table_or_markdown(comparison.results)
    typer.echo("Settings that differ")
    limit = _value_characters(comparison)
    rows = [
        [row.key, *(_value(value, limit) for value in row.values)] for row in comparison.differences
    ]
    _print_columns([["", *letters], *rows] if rows else [["none"]])
    if any(any(row.intervals) for model in comparison.models for row in model.measures):
        typer.echo("\nDifferences of scores have their 95 % interval over the choice of samples.")
    if comparison.questions_differ:
        typer.echo(
            "\nThe models were evaluated on different samples; the differences include this effect."
        )
    for model in comparison.models:
        typer.echo(f"\n{model.name}")
        header = ["", *letters, *(f"{letter} - {letters[0]}" for letter in letters[1:])]
        rows = [
            [
                row.name,
                *(score(value, row.digits) for value in row.values),
                *changes(row),
            ]
            for row in model.measures
        ]
        _print_columns([header, *rows])
    if comparison.same:
        typer.echo(f"\nThe same in all runs: {', '.join(comparison.same)}")


def _print_columns(rows: list[list[str]]) -> None:
    """Print rows as columns, the first left-aligned and the others right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        typer.echo(("  " + "  ".join(cells)).rstrip())


def _write_page(comparison: "RunComparison", file: Path) -> None:
    import time

    from jinja2 import Environment, PackageLoader, StrictUndefined

    from longred import __version__
    from longred.report.glossary import breakable, terms_of_runs
    from longred.report.inputs import date_words, made_by

    environment = Environment(
        loader=PackageLoader("longred.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(score=score, changes=changes, breakable=breakable, made_by=made_by)
    page = environment.get_template("compare.html").render(
        comparison=comparison,
        version=__version__,
        date=date_words(time.time()),
        **terms_of_runs(comparison),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")


def _value_characters(comparison: "RunComparison") -> int:
    """Return how many characters of a setting's value fit the terminal, in every run's column."""
    if not sys.stdout.isatty() or not comparison.differences:
        return 40
    longest = max(len(row.key) for row in comparison.differences)
    width = shutil.get_terminal_size().columns
    return max(8, min(40, (width - 2 - longest) // len(comparison.letters) - 2))


def _value(value: Any, limit: int) -> str:
    text = "unset" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def score(value: float | None, digits: int) -> str:
    """Format a score."""
    return "n/a" if value is None else f"{value:.{digits}f}"


def changes(row: "Row") -> list[str]:
    """Format a row's differences from the first run, with the intervals that are known."""
    texts = [change(value, row.digits) for value in row.changes()]
    return [
        text if ends is None else f"{text} [{ends[0]:+.1f}, {ends[1]:+.1f}]"
        for text, ends in zip(texts, row.change_intervals(), strict=True)
    ]


def change(value: float | None, digits: int) -> str:
    """Format a difference with its sign; '0' if it rounds to zero."""
    if value is None:
        return "n/a"
    text = f"{value:+.{digits}f}"
    return text if float(text) else "0"
