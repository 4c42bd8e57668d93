"""`longred inspect`: prints what a data artifact contains."""

import json
from pathlib import Path
from typing import Annotated

import typer

from longred.cli.common import StoreOption, open_store, print_table


def inspect(
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT", help="a folder, the name of a data artifact, a run's id or `latest`"
        ),
    ] = "latest",
    plot: Annotated[Path | None, typer.Option(help="PNG file for the length histogram")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    store: StoreOption = None,
) -> None:
    """Print prepared data: buckets, sources, rejected rows, samples and a length histogram."""
    import tempfile

    from longred.cli.resolve import find_data
    from longred.data import inspection

    folder = find_data(open_store(store), artifact)
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
    print_table(("split", "bucket", "block", "blocks", "tokens"), inspection.bucket_rows(index))
    counts = ("shards", "rows", "train docs", "held-out docs", "train tokens", "read tokens")
    head = ("source", "kind", *counts, "duplicates", "contaminated")
    print_table(head, inspection.source_rows(index))
    print_table(("source", "what", "reason", "count"), inspection.reason_rows(index))
    notes = [
        text
        for name, source in index["sources"].items()
        for text in inspection.files_texts(name, source)
    ]
    if notes:
        typer.echo("\n".join(notes) + "\n")
    for bucket, blocks in inspection.sample_blocks(folder).items():
        for number, text in enumerate(blocks):
            typer.echo(f"{bucket} block {number}: {text!r}")
    typer.echo(f"\nlengths  {plot}")
