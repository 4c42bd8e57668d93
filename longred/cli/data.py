"""Verbs that look at data: what was prepared, and what a recipe's corpus can fill."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longred.cli.common import Overrides, StoreOption, open_store
from longred.errors import ConfigError

if TYPE_CHECKING:
    from longred.config import RunConfig


def inspect(
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT", help="a folder, the name of a data artifact, a run's id or `latest`"
        ),
    ] = "latest",
    plot: Annotated[Path | None, typer.Option(help="where to draw the lengths (PNG)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
    store: StoreOption = None,
) -> None:
    """Show prepared data: buckets, sources, what was left out, samples, a length histogram."""
    import tempfile

    from longred.data import inspection

    folder = _data_folder(artifact, store)
    index = inspection.summary(folder)
    if as_json:
        typer.echo(json.dumps(index, indent=2, sort_keys=True))
        return
    if plot is None:
        plot = Path(tempfile.mkdtemp(prefix="longred-")) / f"{folder.name}-lengths.png"
    inspection.draw_lengths(folder, plot)
    tokens = index["tokens"]
    typer.echo(f"data     {folder}  ({inspection.size_bytes(index) / 1e6:,.1f} MB of blocks)")
    typer.echo(
        f"tokens   {tokens['read']:,} read = {tokens['written']:,} written + "
        f"{tokens['dropped']:,} dropped\n"
    )
    _table(("split", "bucket", "block", "blocks", "tokens"), inspection.bucket_rows(index))
    counts = ("shards", "rows", "train docs", "held-out docs", "train tokens", "read tokens")
    head = ("source", "kind", *counts, "duplicates", "contaminated")
    _table(head, inspection.source_rows(index))
    _table(("source", "what", "reason", "count"), inspection.reason_rows(index))
    for bucket, blocks in inspection.sample_blocks(folder).items():
        for number, text in enumerate(blocks):
            typer.echo(f"{bucket} block {number}: {text!r}")
    typer.echo(f"\nlengths  {plot}")


def plan(
    recipe: Annotated[str, typer.Argument(help="a packaged recipe's name, or a YAML file")],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Say what a recipe will take, before anything is written."""
    from longred.runs import load_config

    config = load_config(recipe, overrides or [])
    sections = {name: section(config) for name, (section, _) in SECTIONS.items()}
    if as_json:
        typer.echo(json.dumps(sections, indent=2))
        return
    for name, (_, show) in SECTIONS.items():
        typer.echo(f"{name}\n")
        show(sections[name])


def _plan_data(config: "RunConfig") -> list[dict[str, Any]]:
    from longred.data.estimate import estimate, to_json
    from longred.models import resolve_model

    folder = resolve_model(config.model.path, config.model.revision)
    return to_json(estimate(config.data, folder))


def _show_data(sources: Sequence[dict[str, Any]]) -> None:
    def shown(count: int | None) -> str:
        return "as needed" if count is None else f"{count:,}"

    _table(
        ("source", "shards", "text bytes", "bucket", "needed tokens", "available", "verdict"),
        [
            [
                source["source"],
                shown(source["shards"]),
                shown(source["num_bytes"]),
                bucket["bucket"],
                f"{bucket['needed_tokens']:,}",
                shown(bucket["available_tokens"]),
                bucket["verdict"],
            ]
            for source in sources
            for bucket in source["buckets"]
        ],
    )
    for source in sources:
        typer.echo(
            f"{source['source']}: from {source['sampled_documents']:,} documents, "
            f"{source['sampled_tokens']:,} tokens, {source['rejected']:,} rejected rows"
        )
    typer.echo("available: tokens of training documents long enough; a document feeds one bucket")


SECTIONS = {"data": (_plan_data, _show_data)}
"""What `plan` says: name → how it is found out, and how it is shown."""


def _data_folder(name: str, store: str | None) -> Path:
    """Return the data folder that is meant.

    Raises:
        ConfigError: there is none.
    """
    from longred.runs import load_run

    if (Path(name) / "index.json").is_file():
        return Path(name)
    found = open_store(store)
    if (found.artifacts / name / "index.json").is_file() and "/" not in name:
        return found.artifacts / name
    stage = load_run(found, name).last_attempts().get("data")
    if stage is None or not stage.path:
        raise ConfigError(f"{name}: this run has no prepared data")
    return Path(stage.path)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
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
