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


def test_words_of_both_kinds_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    real = [f"word{number}" for number in range(300)]
    monkeypatch.setattr(words, "all_words", lambda: tuple(real))
    shares = []
    for seed in range(20):
        drawn = words.mixed_words(random.Random(seed), 1000)
        assert len(set(drawn)) == len(drawn) == 1000
        assert set(real) <= set(drawn)
        shares.append([word in real for word in drawn])
    # 10 words at the start, 10 at the end, and all between: 0.3 of each are real.
    for part in (slice(0, 10), slice(-10, None), slice(10, -10)):
        found = [share for sample in shares for share in sample[part]]
        assert sum(found) / len(found) == pytest.approx(0.3, abs=0.1)
    assert set(words.mixed_words(random.Random(0), 200)) < set(real)
