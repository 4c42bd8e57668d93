"""Order, resume and document boundaries of the training rows."""

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from longred.data.layout import BlockFile
from longred.data.loader import Permutation, Rows, StepLoader, read_rows
from longred.errors import ConfigError, MismatchError

ROWS = {"long": 4, "short": 24, "original": 4}


def blocks_of(steps: list[dict[str, Rows]], bucket: str) -> list[list[int]]:
    return [step[bucket].block_ids for step in steps]


def take(loader: StepLoader, num_steps: int) -> list[dict[str, Rows]]:
    return [loader.next_step() for _ in range(num_steps)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1023, 1024, 1025, 5000])
def test_permutation_is_a_bijection(size: int) -> None:
    order = Permutation(size, seed=7, bucket="long", epoch=2)
    assert sorted(order[i] for i in range(size)) == list(range(size))


def test_permutation_depends_on_seed_bucket_and_epoch() -> None:
    def order(seed: int, bucket: str, epoch: int) -> list[int]:
        permutation = Permutation(1000, seed=seed, bucket=bucket, epoch=epoch)
        return [permutation[i] for i in range(1000)]

    first = order(0, "long", 0)
    assert first == order(0, "long", 0)
    for other in (order(1, "long", 0), order(0, "short", 0), order(0, "long", 1)):
        assert sum(a == b for a, b in zip(first, other, strict=True)) < 20


def test_permutation_looks_random() -> None:
    order = Permutation(4096, seed=0, bucket="short", epoch=0)
    values = np.array([order[i] for i in range(4096)])
    assert abs(np.corrcoef(values, np.arange(4096))[0, 1]) < 0.06
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.06
    # A fair shuffle keeps 2 neighbours together on average.
    assert np.sum(np.abs(np.diff(values)) == 1) < 10


def test_every_step_has_exactly_the_rows_asked_for(data_folder: Path) -> None:
    for step in take(StepLoader(data_folder, rows=ROWS, seed=0), 20):
        sizes = {bucket: tuple(rows.input_ids_BT.shape) for bucket, rows in step.items()}
        assert sizes == {"long": (4, 64), "short": (24, 8), "original": (4, 16)}
        assert [rows.input_ids_BT.dtype for rows in step.values()] == [torch.int64] * 3
        for rows in step.values():
            length = rows.input_ids_BT.shape[1]
            expected = torch.tensor(rows.block_ids)[:, None] * 100 + torch.arange(length)
            assert torch.equal(rows.input_ids_BT, expected)


def test_an_epoch_reads_every_block_once_and_the_next_in_another_order(data_folder: Path) -> None:
    steps = take(StepLoader(data_folder, rows={"long": 5}, seed=0), 4)
    blocks = list(chain(*blocks_of(steps, "long")))
    assert sorted(blocks[:10]) == sorted(blocks[10:]) == list(range(10))
    assert blocks[:10] != blocks[10:]


def test_rows_of_a_step_cross_the_end_of_an_epoch(data_folder: Path) -> None:
    steps = take(StepLoader(data_folder, rows={"long": 4}, seed=0), 5)
    blocks = list(chain(*blocks_of(steps, "long")))
    assert sorted(blocks[:10]) == sorted(blocks[10:]) == list(range(10))


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 7, 13])
def test_resume_equals_an_uninterrupted_run(data_folder: Path, stop: int) -> None:
    whole = take(StepLoader(data_folder, rows=ROWS, seed=3), 20)
    first = StepLoader(data_folder, rows=ROWS, seed=3)
    steps = take(first, stop)
    state = json.loads(json.dumps(first.state()))
    for _ in range(2):  # the second pass resumes a resumed run
        second = StepLoader(data_folder, rows=ROWS, seed=3)
        second.load_state(state)
        steps += take(second, 3)
        state = json.loads(json.dumps(second.state()))
    for bucket in ROWS:
        assert blocks_of(steps, bucket) == blocks_of(whole, bucket)[: stop + 6]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_global_order_does_not_depend_on_the_world_size(
    data_folder: Path, world_size: int
) -> None:
    whole = take(StepLoader(data_folder, rows=ROWS, seed=0), 6)
    ranks = [
        StepLoader(data_folder, rows=ROWS, seed=0, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step in whole:
        parts = [loader.next_step() for loader in ranks]
        for bucket, rows in step.items():
            merged = [0] * ROWS[bucket]
            for rank, part in enumerate(parts):
                merged[rank::world_size] = part[bucket].block_ids
            assert merged == rows.block_ids
    assert all(loader.state() == ranks[0].state() for loader in ranks)


def test_resume_with_another_world_size(data_folder: Path) -> None:
    whole = take(StepLoader(data_folder, rows=ROWS, seed=0), 4)
    two = [StepLoader(data_folder, rows=ROWS, seed=0, rank=r, world_size=2) for r in range(2)]
    for loader in two:
        take(loader, 3)
    one = StepLoader(data_folder, rows=ROWS, seed=0)
    one.load_state(two[1].state())
    assert blocks_of(take(one, 1), "short") == blocks_of(whole[3:], "short")


def test_a_state_of_other_data_is_refused(data_folder: Path) -> None:
    loader = StepLoader(data_folder, rows=ROWS, seed=0)
    state = loader.state()
    other_blocks = {**state, "num_blocks": {**state["num_blocks"], "long": 11}}
    other_buckets = {**state, "cursors": {"long": 4}}
    for wrong in ({**state, "seed": 1}, other_blocks, other_buckets, {}):
        with pytest.raises(MismatchError, match="position in the data"):
            loader.load_state(wrong)


def test_rows_must_divide_over_the_processes(data_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.step_tokens: 4 rows of the long bucket"):
        StepLoader(data_folder, rows=ROWS, seed=0, rank=0, world_size=3)


def test_documents_of_packed_blocks(data_folder: Path) -> None:
    file = BlockFile(data_folder, "long")
    assert file.document_ends(3).tolist() == [10, 30, 64]
    assert file.document_ids(3).tolist() == [0] * 10 + [1] * 20 + [2] * 34
    assert file.document_ids(3).dtype == np.int32
    assert file.document_ids(4).tolist() == [0] * 64
    assert BlockFile(data_folder, "short").document_ids(0).tolist() == [0] * 8


def test_document_ids_come_only_where_a_row_has_several(data_folder: Path) -> None:
    for step in take(StepLoader(data_folder, rows=ROWS, seed=0), 10):
        documents = step["long"].document_ids_BT
        assert (documents is not None) == (3 in step["long"].block_ids)
        if documents is not None:
            row = step["long"].block_ids.index(3)
            assert documents.dtype == torch.int32
            assert documents[row].tolist() == [0] * 10 + [1] * 20 + [2] * 34
        assert step["short"].document_ids_BT is None


def test_read_rows_takes_the_first_blocks(data_folder: Path) -> None:
    rows = read_rows(data_folder, "short", num_tokens=33)
    assert rows.tolist() == [[100 * block + i for i in range(8)] for block in range(4)]
    assert len(read_rows(data_folder, "short", num_tokens=10**6)) == 50


def test_a_file_of_another_size_is_refused(data_folder: Path) -> None:
    path = data_folder / "tokens/short.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(MismatchError, match=r"short\.bin: 798 bytes, 800 bytes recorded"):
        BlockFile(data_folder, "short")


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="not a data folder"):
        BlockFile(tmp_path, "long")


@pytest.mark.medium
def test_the_loader_needs_no_more_than_a_training_box_has() -> None:
    code = (
        "import sys, longred.data.loader; "
        "bad = {'pydantic', 'tokenizers', 'datasets', 'prefect', 'yaml'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
