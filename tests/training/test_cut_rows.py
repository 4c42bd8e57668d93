"""Rows that PoSE cuts out of long ones: text, documents and positions agree."""

from pathlib import Path

import pytest
import torch
from test_step import cut, rows_of_step
from tiny_training import ORIGINAL, TARGET, MakeJob

from longred.data.loader import StepLoader
from longred.training.rows import seen_rows, skipped_positions
from longred.training.trainer import Trainer


def test_each_long_row_gives_two_runs_at_their_own_positions(make_job: MakeJob) -> None:
    job = make_job(method="pose", micro_batch_tokens=1, seed=1)
    rows = rows_of_step(job)
    whole, documents = rows["long"].input_ids_BT, rows["long"].document_ids_BT
    batches = cut(job, rows)
    assert len(batches) == 2 * TARGET // ORIGINAL
    draws = set()
    for number, batch in enumerate(batches):
        row = number // (TARGET // ORIGINAL)
        places = batch.position_ids_BT[0].tolist()
        assert batch.input_ids_BT.shape == (1, ORIGINAL)
        assert batch.block_ids == [rows["long"].block_ids[row]]
        assert batch.input_ids_BT[0].tolist() == [int(whole[row, place]) for place in places]
        assert batch.document_ids_BT[0].tolist() == [int(documents[row, p]) for p in places]
        draws.add(tuple(places))
    assert len(draws) == len(batches), "each row has its own draw"
    shares = [share for batch in batches for share in batch.shares.values()]
    targets = [int((batch.document_ids_BT.diff() == 0).sum()) for batch in batches]
    assert len(set(targets)) > 1, "the rows of this test must differ"
    assert shares == pytest.approx([count / sum(targets) for count in targets])


def test_blocks_that_are_no_multiple_of_the_window_give_as_many_rows_as_fit(
    make_job: MakeJob,
) -> None:
    job = make_job(method="pose", original_window=50)
    rows = rows_of_step(job)["long"]
    cut_out = seen_rows(job, "long", rows)
    assert cut_out.input_ids_BT.shape == (4, 50)
    assert cut_out.row_numbers == [0, 1, 2, 3]
    places = skipped_positions(job, cut_out.row_numbers)
    assert int(places.max()) < TARGET
    assert torch.equal(cut_out.input_ids_BT[3], rows.input_ids_BT[1][places[3]])


def test_processes_cut_what_one_process_cuts(make_job: MakeJob) -> None:
    job = make_job(method="pose")
    settings = {"rows": job.rows, "seed": job.seed}
    folder = Path(job.data_folder)
    whole = seen_rows(job, "long", StepLoader(folder, **settings).next_step()["long"])
    for rank in range(2):
        loader = StepLoader(folder, **settings, rank=rank, world_size=2)
        part = seen_rows(job, "long", loader.next_step()["long"])
        assert torch.equal(part.input_ids_BT, whole.input_ids_BT[2 * rank : 2 * rank + 2])
        assert part.row_numbers == whole.row_numbers[2 * rank : 2 * rank + 2]


def test_speed_counts_the_tokens_of_cut_rows(make_job: MakeJob, tmp_path: Path) -> None:
    assert Trainer(make_job(method="pose"), tmp_path / "a").meter.step_tokens == 2 * TARGET
    trainer = Trainer(make_job(), tmp_path / "b")
    assert trainer.meter.step_tokens == 2 * TARGET + 5 * 32 + 3 * ORIGINAL
