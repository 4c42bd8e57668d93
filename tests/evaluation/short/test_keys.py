import random
import re

from longred.evaluation.short.key_recall import draw_key, draw_keys, is_held_out_word


def words_of(key):
    return re.split(r"[-_ ]", key)


def test_no_held_out_word_in_training_keys_and_the_other_way_round():
    rng = random.Random(0)
    training = {word for _ in range(2000) for word in words_of(draw_key(rng))}
    held_out = {word for _ in range(2000) for word in words_of(draw_key(rng, held_out=True))}
    assert not training & held_out
    assert not any(is_held_out_word(word) for word in training)
    assert all(is_held_out_word(word) for word in held_out)


def test_keys_are_distinct_and_of_several_forms():
    keys = draw_keys(random.Random(1), 200)
    assert len(set(keys)) == 200
    for separator in "- _":
        assert any(separator in key for key in keys)
    assert any(len(words_of(key)) == 1 for key in keys)
