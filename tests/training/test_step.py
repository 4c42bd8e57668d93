"""How a step's rows are cut into micro-batches, weighed and given positions."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import ORIGINAL, TARGET, MakeJob

from longred.data.loader import Rows, StepLoader
from longred.training.step import bucket_weights, micro_batches, skipped_positions


def rows_of_step(job) -> dict[str, Rows]:
    return StepLoader(Path(job.data_folder), rows=job.rows, seed=job.seed).next_step()


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [
        (1, {"long": [1, 1], "short": [1] * 5, "original": [1] * 3}),
        (96, {"long": [1, 1], "short": [3, 2], "original": [1] * 3}),
        (128, {"long": [1, 1], "short": [3, 2], "original": [2, 1]}),
        (10_000, {"long": [2], "short": [5], "original": [3]}),
    ],
)
def test_sizes_are_whole_rows_and_as_equal_as_can_be(limit, sizes, make_job: MakeJob):
    job = make_job(micro_batch_tokens=limit)
    rows = rows_of_step(job)
    batches = list(micro_batches(job, rows, skipped_positions(job, 1)))
    for bucket, expected in sizes.items():
        parts = [batch for batch in batches if batch.bucket == bucket]
        assert [len(part.input_ids_BT) for part in parts] == expected
        assert torch.equal(torch.cat([p.input_ids_BT for p in parts]), rows[bucket].input_ids_BT)
        assert [i for p in parts for i in p.block_ids] == rows[bucket].block_ids
        assert sum(p.share for p in parts) == pytest.approx(1.0, abs=1e-12)


def test_shares_count_the_targets_inside_documents(make_job: MakeJob):
    job = make_job(micro_batch_tokens=1)
    rows = rows_of_step(job)
    targets = []
    for ids in rows["long"].document_ids_BT.tolist():
        targets.append(sum(a == b for a, b in itertools.pairwise(ids)))
    assert len(set(targets)) > 1, "the rows of this test must differ"
    shares = [b.share for b in micro_batches(job, rows, None) if b.bucket == "long"]
    assert shares == pytest.approx([count / sum(targets) for count in targets])


def test_without_document_masks_no_batch_has_documents(make_job: MakeJob):
    job = make_job(mask_documents=False)
    for batch in micro_batches(job, rows_of_step(job), skipped_positions(job, 1)):
        assert batch.document_ids_BT is None


def test_positions_depend_on_seed_and_step_alone(make_job: MakeJob):
    job = make_job()
    first = skipped_positions(job, 7)
    np.random.seed(1)
    assert torch.equal(skipped_positions(job, 7), first)
    assert first.shape == (3, ORIGINAL)
    assert int(first.max()) == TARGET - 1
    assert not torch.equal(skipped_positions(job, 8), first)
    assert not torch.equal(skipped_positions(make_job(seed=4), 7), first)


def test_only_the_original_bucket_gets_positions(make_job: MakeJob):
    job = make_job()
    for batch in micro_batches(job, rows_of_step(job), skipped_positions(job, 1)):
        assert (batch.position_ids_BT is not None) == (batch.bucket == "original")


@pytest.mark.parametrize(
    ("method", "weighting", "weights"),
    [
        ("longred-c", "token_share", {"long": 1.0, "short": 3.75, "original": 2.5}),
        ("longred-u", "formula", {"long": 1.0, "short": 5.0, "original": 10.0}),
        ("cpt", "token_share", {"long": 1.0}),
        ("mix-cpt", "token_share", {"long": 0.5, "short": 0.375, "original": 0.125}),
    ],
)
def test_weights(method, weighting, weights, make_job: MakeJob):
    assert bucket_weights(make_job(method=method, weighting=weighting)) == weights
