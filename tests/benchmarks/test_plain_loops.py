"""Both sides of every part of the comparison with plain loops find the same."""

import json
from pathlib import Path

import plain_loops
import pytest

from longred.models.load import resolve_model


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_model("demo")


@pytest.mark.parametrize("part", plain_loops.PARTS)
def test_both_sides_find_the_same(part: str, folder: Path) -> None:
    sizes = plain_loops.Sizes(256, tiny=True)
    ours, plain = (
        json.loads(json.dumps(side(folder, sizes)())) for side in plain_loops.PARTS[part]
    )
    assert plain_loops.difference(part, ours, plain) <= plain_loops.TOLERANCE[part]
    assert len(ours) == len(plain) > 0


def test_a_difference_is_an_error() -> None:
    assert plain_loops.difference("perplexity", [2.0], [2.001]) == pytest.approx(5e-4, rel=1e-2)
    with pytest.raises(AssertionError, match="generation"):
        plain_loops.difference("generation", [[1, 2]], [[1, 3]])
