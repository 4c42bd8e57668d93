"""Prints what the sources of a recipe can provide, for `longred plan`."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from longred.cli.common import print_table
from longred.cli.cost_tables import wrap


def show_data(sources: Sequence[Mapping[str, Any]]) -> None:
    """Print `estimate.to_json`: a row for each bucket of a source, then notes on each source."""
    from longred.data.inspection import files_texts

    print_table(
        ("source", "bucket", "needed tokens", "long enough", "documents", "held-out", "verdict"),
        [
            [
                source["source"],
                bucket["bucket"],
                f"{bucket['needed_tokens']:,}",
                _count(bucket["available_tokens"]),
                _count(bucket["documents"]),
                _held_out(bucket),
                _verdict(bucket),
            ]
            for source in sources
            for bucket in source["buckets"]
        ],
    )
    for source in sources:
        if source["num_bytes"] is None:
            continue
        how = "read as the run reads it" if source["is_exact"] else "by a sample"
        plural = "" if source["shards"] == 1 else "s"
        told = (
            f"{source['source']}: {source['num_bytes']:,} bytes of text in {source['shards']:,} "
            f"shard{plural}; {how}: {source['sampled_documents']:,} documents, "
            f"{source['sampled_tokens']:,} tokens, {source['rejected']:,} rejected rows"
        )
        typer.echo(wrap(told))
        for note in files_texts(source["source"], source):
            typer.echo(wrap(note))
    shared = (
        "long enough: tokens of the training documents that this bucket could use; the buckets "
        "share them, because a document feeds one bucket, often with a part of its tokens"
    )
    typer.echo(wrap(shared))


def _count(count: int | None) -> str:
    return "as needed" if count is None else f"{count:,}"


def _held_out(bucket: Mapping[str, Any]) -> str:
    """Return the held-out tokens, with the wanted number if there are fewer."""
    wanted, found = bucket["held_out_needed_tokens"], bucket["held_out_tokens"]
    if found is None:
        return f"{wanted:,}" if bucket["held_out_chance"] == 1 else f"up to {wanted:,}"
    return f"{wanted:,}" if found >= wanted else f"{found:,} of {wanted:,}"


def _verdict(bucket: Mapping[str, Any]) -> str:
    """Return a bucket's verdict, with its probability unless it is certain, or what it lacks."""
    filled = bucket["filled_tokens"]
    if filled is not None and filled < bucket["needed_tokens"]:
        return f"{bucket['verdict']} ({filled:,} could be filled)"
    if 0 < bucket["chance"] < 1:
        return f"{bucket['verdict']} (in {bucket['chance']:.0%} of trials)"
    return str(bucket["verdict"])
