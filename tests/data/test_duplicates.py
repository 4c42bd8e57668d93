"""Duplicate masks, compared with a set of all earlier texts."""

import numpy as np
import pytest

from longred.data import reading
from longred.data.reading import duplicate_masks


@pytest.mark.parametrize("at_once", [10, 1000])
def test_the_first_of_equal_texts_stays(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "HASHES_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    tables = [rng.integers(0, 150, size, dtype=np.uint64) for size in (100, 0, 7, 60)]
    seen: set[int] = set()
    expected = []
    for table in tables:
        expected.append([])
        for value in table.tolist():
            expected[-1].append(value in seen)
            seen.add(value)
    found = duplicate_masks([len(table) for table in tables], tables.__getitem__)
    assert [mask.tolist() for mask in found] == expected
    assert duplicate_masks([], tables.__getitem__) == []
