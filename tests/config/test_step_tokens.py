"""A refused number of tokens a step comes with the nearest that work, whatever the recipe."""

import random
import re
from typing import Any

import pytest
from pydantic import ValidationError

from longred.config import RunConfig, load_recipe
from longred.config.advice import unit_of
from longred.errors import ConfigError

WORK = re.compile(r"(?:nearest that work are|smallest that works is) (\d+)(?: and (\d+))?")


def proposed(name: str, changes: list[str]) -> list[int] | None:
    """Return the proposed values; None if the recipe is accepted."""
    try:
        load_recipe(name, changes)
    except ConfigError as error:
        found = WORK.findall(str(error))
        return [int(value) for values in found for value in values if value]
    return None


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        # A long block of 1,024 is half of the tokens, so 2,048 are the smallest part.
        (["training.step_tokens=7200"], [6144, 8192]),
        (["training.step_tokens=100"], [2048]),
        # Three processes need a multiple of three rows in each bucket.
        (["training.parallel.num_processes=3"], [6144, 12288]),
        (
            ["training.method=cpt", "training.baselines=[]", "training.step_tokens=1500"],
            [1024, 2048],
        ),
    ],
)
def test_values_by_hand(changes: list[str], values: list[int]) -> None:
    assert proposed("demo", changes) == values


def test_less_is_proposed_than_a_common_multiple_of_all_lengths() -> None:
    """65,536 tokens a step work for the 32K recipe's buckets; twice as many were proposed."""
    recipe = load_recipe("llama3-8b-32k", ["training.step_tokens=65536"])
    assert unit_of(recipe) == 65536
    assert proposed("llama3-8b-32k", ["training.step_tokens=65000"]) == [65536]


@pytest.mark.parametrize("seed", range(3))
def test_every_proposal_is_accepted(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(6):
        theta = "rope_theta: 4e4"
        windows = rng.choice(
            ["", f"{{target_window: 512, {theta}}}", f"{{target_window: 640, {theta}}}"]
        )
        changes = [
            f"data.short_length={rng.choice([64, 100, 128])}",
            f"data.ratio.long={rng.randrange(1, 6)}",
            f"data.ratio.short={rng.randrange(1, 6)}",
            "data.ratio.original=1",
            f"training.baselines={rng.choice(['[]', '[cpt]', '[mix-cpt, cream]'])}",
            f"training.parallel.num_processes={rng.choice([1, 2, 3])}",
            f"extension.windows=[{windows}]",
        ]
        tokens = rng.randrange(500, 2_000_000)
        values = proposed("demo", [*changes, f"training.step_tokens={tokens}"])
        assert values != []
        for value in values or []:
            assert proposed("demo", [*changes, f"training.step_tokens={value}"]) is None


def test_windows_with_few_common_factors_are_named() -> None:
    """No size of a step near the wanted one works for them, so the windows have to change."""
    even = ["original_window=8192", "target_window=32768", "data.short_length=1024"]
    wanted = ["evaluation.ruler.lengths=[8192]", "training.step_tokens=60000"]
    with pytest.raises(ConfigError, match="that work") as it:
        load_recipe("llama3-8b-32k", [*even, *wanted])
    assert "few factors" not in str(it.value)
    odd = ["target_window=32774", "evaluation.ruler.lengths=[8192]"]
    reason = (
        r"works is \d+ \(.*\); the blocks of 1024, 8192, 32774 tokens have few factors in common"
    )
    with pytest.raises(ConfigError, match=reason):
        load_recipe("llama3-8b-32k", [*odd, "training.step_tokens=65536"])


def refused(config: dict[str, Any]) -> list[int] | None:
    """Return the proposed values for settings of a recipe; None if it is accepted."""
    try:
        RunConfig.model_validate(config)
    except ValidationError as error:
        pairs = WORK.findall(str(error))
        return [int(value) for pair in pairs for value in pair if value]
    return None


def random_recipe(rng: random.Random) -> dict[str, Any]:
    """Return a recipe of odd windows, without `training.step_tokens`."""
    original = rng.choice([256, 900, 1000, 2048, rng.randrange(128, 5000)])
    target = original * rng.randrange(2, 9) + rng.choice([0, 0, rng.randrange(9)])
    num_processes = rng.choice([1, 2, 3, 4, 6])
    between = rng.randrange(original + 1, target)
    return {
        "name": "odd",
        "original_window": original,
        "target_window": target,
        "extension": {"windows": rng.choice([[], [{"target_window": between}]])},
        "data": {
            "num_tokens": 10**9,
            "short_length": rng.randrange(16, original // 2),
            "ratio": {bucket: rng.randrange(1, 8) for bucket in ("long", "short", "original")},
            "sources": [{"name": "text", "kind": "library"}],
        },
        "training": {
            "method": "longred-u" if target < original**2 // 8 else "mix-cpt",
            "baselines": rng.choice([[], ["cpt"], ["cpt", "attention-distill"]]),
            "parallel": {"num_processes": num_processes},
        },
    }


@pytest.mark.parametrize("seed", range(12))
def test_no_value_between_the_proposals_works(seed: int) -> None:
    """Sums and differences of values that work do too, so the smallest one divides all of them.

    It is the distance of the two proposals, and no part of it is accepted.
    """
    rng = random.Random(seed)
    recipe = random_recipe(rng)

    def proposals(step_tokens: int) -> list[int] | None:
        training = {**recipe["training"], "step_tokens": step_tokens}
        return refused({**recipe, "training": training})

    (unit,) = proposals(1) or ()
    if unit >= 10**13:
        return  # no number of tokens that a recipe may name lies between two proposals
    tokens = unit * rng.randrange(1, 50) + rng.randrange(1, unit)
    below, above = proposals(tokens) or ()
    assert below < tokens < above
    assert above - below == unit
    assert proposals(below) is None
    assert proposals(above) is None
    factors = [n for n in range(2, 10_000) if unit % n == 0]
    assert factors
    assert all(proposals(below + unit // n) for n in factors)
