"""How a step's rows are split into micro-batches, weighted and given positions."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import ORIGINAL, TARGET, MakeJob

from longred.data.loader import Rows, StepLoader
from longred.training.step import (
    MicroBatch,
    fixed_weights,
    micro_batches,
    skipped_positions,
    term_counts,
)


def rows_of_step(job) -> dict[str, Rows]:
    return StepLoader(Path(job.data_folder), rows=job.rows, seed=job.seed).next_step()


def cut(job, rows: dict[str, Rows]) -> list[MicroBatch]:
    counts = term_counts(job, rows)
    totals = {term: float(count.sum()) for term, count in counts.items()}
    return list(micro_batches(job, rows, counts, totals))


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
    batches = cut(job, rows)
    for bucket, expected in sizes.items():
        parts = [batch for batch in batches if batch.bucket == bucket]
        assert [len(part.input_ids_BT) for part in parts] == expected
        assert torch.equal(torch.cat([p.input_ids_BT for p in parts]), rows[bucket].input_ids_BT)
        assert [i for p in parts for i in p.block_ids] == rows[bucket].block_ids
        for term in parts[0].shares:
            assert sum(p.shares[term] for p in parts) == pytest.approx(1.0, abs=1e-12)


def test_shares_count_the_targets_inside_documents(make_job: MakeJob):
    job = make_job(micro_batch_tokens=1)
    rows = rows_of_step(job)
    targets = []
    for ids in rows["long"].document_ids_BT.tolist():
        targets.append(sum(a == b for a, b in itertools.pairwise(ids)))
    assert len(set(targets)) > 1, "the rows of this test must differ"
    shares = [s for b in cut(job, rows) if b.bucket == "long" for s in b.shares.values()]
    assert shares == pytest.approx([count / sum(targets) for count in targets])


def test_without_document_masks_no_batch_has_documents(make_job: MakeJob):
    job = make_job(mask_documents=False)
    for batch in cut(job, rows_of_step(job)):
        assert batch.document_ids_BT is None


def test_shares_count_the_tokens_that_a_teacher_is_shown(make_job: MakeJob):
    job = make_job(micro_batch_tokens=1, long_distill_weight=1.0)
    rows = rows_of_step(job)
    shown = []
    for ids in rows["long"].document_ids_BT.tolist():
        lengths = [len(list(same)) for _, same in itertools.groupby(ids)]
        shown.append(sum(min(length, ORIGINAL) for length in lengths))
    assert any(count < TARGET for count in shown), "a document of this test must be long"
    shares = [
        share
        for batch in cut(job, rows)
        for term, share in batch.shares.items()
        if term.objective == "long_distill"
    ]
    assert shares == pytest.approx([count / sum(shown) for count in shown])


def test_positions_depend_on_seed_and_row_number_alone(make_job: MakeJob):
    job = make_job()
    first = skipped_positions(job, [7, 8, 9])
    np.random.seed(1)
    assert torch.equal(skipped_positions(job, [9, 8]), first[[2, 1]])
    assert first.shape == (3, ORIGINAL)
    assert int(first.max()) == TARGET - 1
    assert len({tuple(row) for row in first.tolist()}) == 3
    assert not torch.equal(skipped_positions(make_job(seed=4), [7, 8, 9]), first)


@pytest.mark.parametrize("world_size", [1, 3])
def test_rows_and_losses_of_a_step_do_not_depend_on_the_processes(world_size, make_job: MakeJob):
    job = make_job(rows={"long": 3, "short": 6, "original": 3}, micro_batch_tokens=1)
    whole = StepLoader(Path(job.data_folder), rows=job.rows, seed=job.seed)
    parts = [
        StepLoader(
            Path(job.data_folder), rows=job.rows, seed=job.seed, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    for _ in range(2):
        expected = cut(job, whole.next_step())
        steps = [part.next_step() for part in parts]
        counts = [term_counts(job, step) for step in steps]
        totals = {term: sum(float(c[term].sum()) for c in counts) for term in job.terms}
        found = [
            b for s, c in zip(steps, counts, strict=True) for b in micro_batches(job, s, c, totals)
        ]
        for batch in expected:
            (same,) = [
                b for b in found if (b.bucket, b.block_ids) == (batch.bucket, batch.block_ids)
            ]
            assert same.shares == pytest.approx(batch.shares, rel=1e-12)
            assert (same.position_ids_BT is None) == (batch.position_ids_BT is None)
            if batch.position_ids_BT is not None:
                assert torch.equal(same.position_ids_BT, batch.position_ids_BT)


def test_only_the_original_bucket_gets_positions(make_job: MakeJob):
    job = make_job()
    for batch in cut(job, rows_of_step(job)):
        assert (batch.position_ids_BT is not None) == (batch.bucket == "original")


def test_optional_terms_are_left_out_at_weight_zero(make_job: MakeJob):
    assert [term.objective for term in fixed_weights(make_job())] == [
        "cross_entropy",
        "hidden_distill",
        "short_to_long",
    ]
    job = make_job(attention_distill_weight=2.0, long_distill_weight=1.0, short_distill_weight=0.0)
    assert {term.metric: weight for term, weight in fixed_weights(job).items()} == {
        "train/long_loss": 1.0,
        "train/long_distill_loss": 1.0,
        "train/short_distill_loss": 0.0,
        "train/attention_distill_loss": 1.5,
        "train/short_to_long_loss": 2.5,
    }
