"""The drift as one long table in parquet: a row a layer, head and bin of positions."""

from pathlib import Path

from longred.profiling.drift import Cells, Drift
from longred.store.artifacts import storage_errors


def write_parquet(drift: Drift, path: Path) -> None:
    """Write every cell of the drift.

    Columns: `measure` (`attention_kl` in nats, or `hidden_similarity`), `layer` (decoder layer from
    0), `head` (none for hidden states), `position_start` and `position_end` (past the bin),
    `num_tokens`, `mean` and `std`. The file's metadata holds `format_version`.

    Args:
        drift: as measured; one that was read from JSON has no cells.
        path: the file.

    Raises:
        ValueError: the drift has no cells.
        StorageError: the disk is full.
    """
    import pyarrow
    import pyarrow.parquet

    if drift.cells is None:
        raise ValueError("a drift that was read from JSON has no cells to write")
    metadata = {"format_version": str(drift.format_version)}
    schema = pyarrow.schema(
        [
            ("measure", pyarrow.string()),
            ("layer", pyarrow.int32()),
            ("head", pyarrow.int32()),
            ("position_start", pyarrow.int64()),
            ("position_end", pyarrow.int64()),
            ("num_tokens", pyarrow.int64()),
            ("mean", pyarrow.float64()),
            ("std", pyarrow.float64()),
        ],
        metadata=metadata,
    )
    table = pyarrow.Table.from_pylist(_rows(drift, drift.cells), schema=schema)
    with storage_errors(path):
        pyarrow.parquet.write_table(table, path)


def _rows(drift: Drift, cells: Cells) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    measures = [
        ("attention_kl", head, cells.kl_NHP[:, head], cells.kl_square_NHP[:, head])
        for head in range(drift.num_heads)
    ]
    sums = [*measures, ("hidden_similarity", None, cells.cosine_NP, cells.cosine_square_NP)]
    for measure, head, total_NP, square_NP in sums:
        mean_NP = total_NP / cells.num_tokens_P
        std_NP = (square_NP / cells.num_tokens_P - mean_NP.square()).clamp_min(0.0).sqrt()
        for layer in range(drift.num_layers):
            for place, start in enumerate(drift.position_starts):
                count = drift.position_tokens[place]
                rows.append(
                    {
                        "measure": measure,
                        "layer": layer,
                        "head": head,
                        "position_start": start,
                        "position_end": [*drift.position_starts[1:], _length(drift)][place],
                        "num_tokens": count,
                        "mean": float(mean_NP[layer, place]),
                        "std": float(std_NP[layer, place]),
                    }
                )
    return rows


def _length(drift: Drift) -> int:
    """Return the length of the rows: position 0 was measured once a row."""
    return drift.num_tokens // drift.position_tokens[0]
