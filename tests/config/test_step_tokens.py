"""A refused number of tokens a step comes with the nearest that work, whatever the recipe."""

import random
import re

import pytest

from longred.config import load_recipe
from longred.config.checks import unit_of
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
