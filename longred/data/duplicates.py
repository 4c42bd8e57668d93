"""Finds documents whose text an earlier document has, in bounded memory.

Texts are compared by 64 bits of their sha256: among 100 million different texts the chance that
even one is taken for another is 0.03 %, and it would only be left out.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

HASHES_AT_ONCE = 2**23

Hashes = npt.NDArray[np.uint64]


def duplicate_masks(
    sizes: Sequence[int], load: Callable[[int], Hashes]
) -> list[npt.NDArray[np.bool_]]:
    """Return, for each document of some shards, whether an earlier one has the same text.

    Documents are in order of shards and, inside each, of rows; the first of equal texts stays.

    Args:
        sizes: documents of each shard.
        load: returns the hash of each document's text of one shard.
    """
    starts = np.cumsum([0, *sizes])
    is_duplicate = np.zeros(int(starts[-1]), dtype=bool)
    num_passes = max(1, -(-len(is_duplicate) // HASHES_AT_ONCE))
    for number in range(num_passes):
        positions, hashes = [], []
        for shard, start in enumerate(starts[:-1]):
            table = load(shard)
            mine = np.flatnonzero(table % np.uint64(num_passes) == number)
            positions.append(mine + start)
            hashes.append(table[mine])
        if not hashes:
            continue
        position, value = np.concatenate(positions), np.concatenate(hashes)
        order = np.argsort(value, kind="stable")
        same = value[order][1:] == value[order][:-1]
        is_duplicate[position[order[1:][same]]] = True
    return [is_duplicate[a:b] for a, b in itertools.pairwise(starts)]
