"""Packing pieces into full blocks; no piece is used twice."""

import random

import pytest

from longred.data.filling import pack


@pytest.mark.parametrize("seed", range(20))
def test_blocks_are_full_and_use_a_piece_once(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 64) for _ in range(rng.randint(0, 200))]
    blocks = pack(lengths, 64, 1000)
    parts = [part for block in blocks for part in block]
    assert all(sum(size for _, size in block) == 64 for block in blocks)
    assert len({piece for piece, _ in parts}) == len(parts)
    assert all(1 <= size <= lengths[piece] for piece, size in parts)
    # Only the last part of a block is cut.
    assert all(size == lengths[p] for block in blocks for p, size in block[:-1])
    unused = set(range(len(lengths))) - {piece for piece, _ in parts}
    assert sum(lengths[piece] for piece in unused) < 64


def test_best_fit_before_cutting() -> None:
    assert pack([40, 30, 24, 34], 64, 10) == [[(0, 40), (2, 24)], [(3, 34), (1, 30)]]
    assert pack([50, 40, 45], 64, 10) == [[(0, 50), (1, 14)]]


def test_no_more_blocks_than_asked_for() -> None:
    assert len(pack([64] * 10, 64, 3)) == 3
    assert pack([], 64, 3) == []


def test_a_piece_longer_than_a_block_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="pieces of 65 to 65 tokens"):
        pack([65], 64, 1)
