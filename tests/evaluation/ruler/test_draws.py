"""The fast random draws equal those of Python's own methods."""

import random
import uuid

import pytest

from longred.evaluation.ruler import words
from longred.evaluation.ruler.words import below, distinct, draw_number, draw_uuid, sampled, uniform


def pair(seed: int) -> tuple[random.Random, random.Random]:
    return random.Random(seed), random.Random(seed)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 1000, 9_000_000, 2**40])
def test_numbers_below(count: int) -> None:
    for seed in range(20):
        one, other = pair(seed)
        assert [below(one, count) for _ in range(20)] == [other.randrange(count) for _ in range(20)]
        assert one.getstate() == other.getstate()


@pytest.mark.parametrize(("size", "count"), [(30, 5), (100, 6), (8166, 732), (8166, 8166), (9, 0)])
def test_samples_are_drawn_as_they_are_taken(size: int, count: int) -> None:
    pool = [f"word {number}" for number in range(size)]
    for seed in range(20):
        one, other = pair(seed)
        assert [*sampled(one, pool, count)] == other.sample(pool, count)
        assert one.getstate() == other.getstate()


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 + 5, 2**64 - 1])
def test_many_numbers_at_a_time(seed: int) -> None:
    rng = random.Random(seed)
    assert uniform(seed, 700).tolist() == [rng.random() for _ in range(700)]
    assert uniform(seed, 2).tolist() == uniform(seed, 700).tolist()[:2]


def test_keys_numbers_and_identifiers() -> None:
    for seed in range(50):
        one, other = pair(seed)
        assert draw_number(one) == str(other.randint(1_000_000, 9_999_999))
        assert draw_uuid(one) == str(uuid.UUID(int=other.getrandbits(128), version=4))
        wanted = f"{other.choice(words.ADJECTIVES)}-{other.choice(words.NOUNS)}"
        assert words.draw_short_key(one) == wanted
        wanted = "".join(other.choices("abcdefghijklmnopqrstuvwxyz", k=6))
        assert words.coded_word(one, 6) == wanted
        assert one.getstate() == other.getstate()


def test_distinct_ends_where_there_is_nothing_new() -> None:
    drawn = iter("abcabcdd" + "d" * 2000)
    found = distinct(lambda: next(drawn))
    assert [next(found) for _ in range(4)] == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="no further distinct words"):
        next(found)
