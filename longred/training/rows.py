"""What the models see of a step's rows: skipped positions, and rows cut out of longer ones."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from longred.data.loader import Rows
from longred.method import positions
from longred.method.job import TrainingJob


def skipped_positions(job: TrainingJob, row_numbers: Sequence[int]) -> Tensor | None:
    """Return the student's positions on rows of the bucket where they skip [B, T], or None.

    A row's positions depend only on (seed, row number): a resumed training draws the same ones
    without saved state, however rows are divided over steps and processes.
    """
    kind = job.recipe.positions
    return None if kind is None else _draw(job, kind, row_numbers)


def _draw(job: TrainingJob, kind: str, row_numbers: Sequence[int]) -> Tensor:
    rows = [
        positions.skip_positions(
            kind,
            original_window=job.original_window,
            target_window=job.target_window,
            num_rows=1,
            generator=np.random.default_rng([job.seed, number]),
            sigma=job.sigma,
            truncation=job.truncation,
        )
        for number in row_numbers
    ]
    return torch.cat(rows)


def seen_rows(job: TrainingJob, bucket: str, rows: Rows) -> Rows:
    """Return the rows of a bucket that the models read: the blocks, or what pose cuts out of them.

    pose cuts several rows of original_window tokens out of each long block: the tokens, and their
    document ids, at the row's own skipped positions.
    """
    kind = job.recipe.positions
    if kind is None or not job.recipe.cuts(bucket):
        return rows
    num_blocks, length = rows.input_ids_BT.shape
    pieces = job.seen_rows(bucket, length)[0] // job.rows[bucket]
    numbers = [number * pieces + piece for number in rows.row_numbers for piece in range(pieces)]
    places_BT = _draw(job, kind, numbers)
    block_B1 = torch.arange(num_blocks).repeat_interleave(pieces)[:, None]
    documents = rows.document_ids_BT
    return dataclasses.replace(
        rows,
        input_ids_BT=rows.input_ids_BT[block_B1, places_BT],
        document_ids_BT=None if documents is None else documents[block_B1, places_BT],
        block_ids=[block for block in rows.block_ids for _ in range(pieces)],
        row_numbers=numbers,
    )
