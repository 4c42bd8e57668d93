"""The search for the largest haystack that fits, against a linear search."""

from collections.abc import Callable, Generator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longred.errors import ConfigError
from longred.evaluation.ruler.fitting import cumulative, fit, linear, per_unit, run


def count(texts: Any) -> list[int]:
    """Count one token per character."""
    return [len(text) for text in texts]


def search(
    size: Callable[[int], int], room: int, largest: int, slack: int, unit_tokens: float
) -> tuple[int, int, int]:
    """Return the number of units, their size, and the number of prompts measured."""
    steps = fit(
        lambda num_units: "x" * size(num_units),
        room,
        smallest=0,
        largest=largest,
        tokens=linear(unit_tokens),
        slack=slack,
    )
    text, num_probes = next(steps), 1
    while True:
        try:
            text = steps.send(len(text))
            num_probes += 1
        except StopIteration as end:
            return *end.value, num_probes


@given(
    unit=st.integers(1, 60),
    extra=st.integers(0, 5),
    room=st.integers(100, 5000),
    largest=st.integers(0, 3000),
    guess=st.floats(0.2, 100),
)
@settings(deadline=None, max_examples=150)
def test_equals_search_one_by_one(
    unit: int, extra: int, room: int, largest: int, guess: float
) -> None:
    def size(num_units: int) -> int:
        return 100 + unit * num_units + extra * (num_units // 3)

    wanted = max(n for n in range(largest + 1) if size(n) <= room)
    found, num_tokens, num_probes = search(size, room, largest, 0, guess)
    assert (found, num_tokens) == (wanted, size(wanted))
    assert num_probes <= 7 + (largest + 1).bit_length() + 1


@given(unit=st.integers(1, 60), room=st.integers(300, 5000), slack=st.integers(1, 40))
@settings(deadline=None, max_examples=50)
def test_slack_ends_the_search_sooner(unit: int, room: int, slack: int) -> None:
    def size(num_units: int) -> int:
        return 100 + unit * num_units

    found, num_tokens, num_probes = search(size, room, 10_000, slack, unit)
    assert num_tokens == size(found) <= room < num_tokens + max(unit, slack) + 1
    assert num_probes <= 3


def test_sizes_that_do_not_always_grow_end_too() -> None:
    found, num_tokens, _ = search(lambda n: 100 + 7 * n + (n % 2) * 9, 500, 100, 0, 1.0)
    assert num_tokens <= 500 < 100 + 7 * (found + 2) + 9


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.ruler\.lengths: .*50 tokens longer"):
        search(lambda n: 100 + n, 50, 10, 0, 1.0)


def test_samples_are_measured_together_and_returned_in_order() -> None:
    batches: list[int] = []

    def batch(texts: Any) -> list[int]:
        batches.append(len(texts))
        return count(texts)

    def steps(number: int) -> Generator[str, int, dict[str, Any]]:
        sizes = []
        for length in range(number + 1):
            sizes.append((yield "x" * length))
        return {"number": number, "sizes": sizes}

    made = run([steps(number) for number in (2, 0, 1)], batch)
    assert [sample["number"] for sample in made] == [2, 0, 1]
    assert [sample["sizes"] for sample in made] == [[0, 1, 2], [0], [0, 1]]
    assert batches == [3, 2, 1]


def test_estimates() -> None:
    words = ["one-", "three-", "seven-"] * 100
    tokens = cumulative(words, count, step=10)
    for number in (0, 10, 150, 300):
        assert tokens(number) == len("".join(words[:number]))
    assert tokens(7) < tokens(8)
    assert tokens(1000) == tokens(300)
    assert per_unit(lambda n: "ab" * n, count) == 2.0
