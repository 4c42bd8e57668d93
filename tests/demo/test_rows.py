import numpy as np
import pytest

from longred.demo.rows import ANSWER_WEIGHT, CHOICE_WEIGHT, CONTEXT_WEIGHT, RowMaker
from longred.demo.tokenizer import train_tokenizer

TEXTS = ["def f(x):\n    return x + 1\n\n" * 200, "The tea is hot. The cup is full.\n" * 150]


@pytest.fixture(scope="module")
def maker():
    return RowMaker(train_tokenizer(TEXTS, 128), TEXTS, seed=3)


def draw(maker, step):
    return maker.mixed_rows(step, num_rows=32, length=128)


def test_rows_are_a_function_of_seed_and_step(maker):
    again = RowMaker(train_tokenizer(TEXTS, 128), TEXTS, seed=3)
    for first, second in zip(draw(maker, 7), draw(again, 7), strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(draw(maker, 7)[0], draw(maker, 8)[0])


def test_mixed_rows_have_all_kinds_and_most_open_with_bos(maker):
    tokens, weights, kinds = draw(maker, 0)
    assert tokens.shape == weights.shape == (32, 128)
    assert tokens.dtype == np.int64
    assert {"text", "needle"} <= set(kinds)
    assert 0.7 < (tokens[:, 0] == maker.bos_id).mean() < 1.0
    assert set(np.unique(weights)) <= {0.0, CONTEXT_WEIGHT, 1.0, ANSWER_WEIGHT, CHOICE_WEIGHT}


@pytest.mark.parametrize("phase", ["copying", "lookup", "recall"])
def test_practice_weighs_answers_only(maker, phase):
    tokens, weights, kinds = maker.practice_rows(0, num_rows=16, length=128, phase=phase)
    allowed = {0.0, ANSWER_WEIGHT} | ({CHOICE_WEIGHT} if phase != "copying" else set())
    assert set(np.unique(weights)) == allowed
    assert "dense" in kinds
    assert (weights.sum(1) > 0).mean() > 0.8
    assert (tokens[:, 0] == maker.bos_id).all()


def test_text_scale_leaves_answers_alone(maker):
    scaled = maker.mixed_rows(0, num_rows=32, length=128, text_scale=0.5)[1]
    assert set(np.unique(scaled)) <= {0.0, 0.5 * CONTEXT_WEIGHT, 0.5, ANSWER_WEIGHT, CHOICE_WEIGHT}


def test_choices_of_random_pairs_were_stated_before(maker):
    tokens, weights, kinds = maker.practice_rows(1, num_rows=32, length=128, phase="lookup")
    for row, weight, kind in zip(tokens, weights, kinds, strict=True):
        if kind == "pairs":
            for place in np.flatnonzero(weight == CHOICE_WEIGHT):
                assert row[place] in row[:place]
