"""Everything that is proposed for trainings that do not fit makes them fit; it is the cheapest."""

import dataclasses
import random

import pytest

from longred.config import RunConfig
from longred.cost.advice import LORA, peak, remedies
from longred.cost.recipe import jobs, lengths_of, plan_recipe, ways_out
from longred.cost.shape import ModelShape, named_config, shape_of
from longred.cost.speeds import known
from longred.runs.record import load_config


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return shape_of(named_config("meta-llama/Meta-Llama-3-8B"))


def advise(shape: ModelShape, config: RunConfig, device: str) -> list[tuple[str, ...]]:
    return [one.settings for one in plan_recipe(config, shape, known(device)).advice]


def test_one_setting_is_proposed_where_one_is_enough(shape: ModelShape) -> None:
    found = advise(shape, load_config("llama3-8b-32k"), "h200")
    assert found[0] == ("training.optimizer_offload=true",)
    assert found[1] == ("training.parallel.num_processes=2",)
    assert not any("lora" in setting for settings in found for setting in settings)


def test_settings_are_proposed_together_where_none_alone_is_enough(shape: ModelShape) -> None:
    config = load_config("llama3-8b-32k", ["training.activation_checkpointing=none"])
    ((job, lengths),) = [(job, lengths_of(config, job)) for job in jobs(config, shape)]

    def needed(**values: object) -> float:
        return peak(shape, [(dataclasses.replace(job, **values), lengths)], "cuda")

    selective, offload = {"activation_checkpointing": "selective"}, {"optimizer_offload": True}
    limit = needed(**selective, **offload)
    assert min(needed(**selective), needed(**offload)) > 1.1 * limit
    found = next(remedies(shape, [(job, lengths)], kind="cuda", limit_bytes=limit))
    assert found.settings == (
        "training.activation_checkpointing=selective",
        "training.optimizer_offload=true",
    )
    assert found.memory_bytes == limit


def test_gpus_and_adapters_are_proposed_where_no_setting_is_enough(shape: ModelShape) -> None:
    two, four, adapters = advise(shape, load_config("llama3-8b-32k"), "h100")
    assert two == ("training.parallel.num_processes=2", "training.optimizer_offload=true")
    assert four == ("training.parallel.num_processes=4",)
    assert adapters == ("training.method=lora", "training.lora.objectives=longred-c")
    assert list(load_config("llama3-8b-32k").training.lora.targets) == list(LORA["targets"])


def test_processes_that_cannot_divide_the_rows_are_not_proposed(shape: ModelShape) -> None:
    # 32 rows of 32K and, for cpt, 64: three or six GPUs cannot divide them.
    config = load_config("llama3-8b-32k", ["training.baselines=[cpt]"])
    can_divide = ways_out(config)["can_divide"]
    layout = next(jobs(config, shape)).layout
    possible = [n for n in range(1, 9) if can_divide(dataclasses.replace(layout, num_processes=n))]
    assert possible == [1, 2, 4, 8]


def test_nothing_is_proposed_where_nothing_helps(shape: ModelShape) -> None:
    config = load_config("llama3-8b-32k")
    sized = [(job, lengths_of(config, job)) for job in jobs(config, shape)]
    assert not list(remedies(shape, sized, kind="cuda", limit_bytes=2**30))
    assert not list(remedies(shape, sized, kind="cpu", limit_bytes=2**34))


@pytest.mark.medium
@pytest.mark.parametrize("seed", range(2))
def test_what_is_proposed_passes_the_same_check(shape: ModelShape, seed: int) -> None:
    """Random recipes and devices: each proposal is a valid recipe, and fits as stated."""
    rng = random.Random(seed)
    for _ in range(8):
        device = rng.choice(["a100-40gb", "a100-80gb", "h100", "h200", "l40s"])
        name = rng.choice(["llama3-8b-32k", "llama3-8b-128k", "mistral-7b-128k"])
        changes = [
            f"training.activation_checkpointing={rng.choice(['none', 'selective', 'full'])}",
            f"training.optimizer={rng.choice(['adamw', 'adamw8bit'])}",
            f"training.baselines={rng.choice(['[]', '[cpt]', '[mix-cpt, merge]'])}",
            f"training.parallel.num_processes={rng.choice([1, 2, 4])}",
            f"training.mlp_tile_tokens={rng.choice([0, 4096])}",
            f"training.fused={rng.choice(['true', 'false'])}",
        ]
        plan = plan_recipe(load_config(name, changes), shape, known(device))
        assert plan.fits == (not plan.advice) or not plan.fits
        for remedy in plan.advice:
            again = plan_recipe(
                load_config(name, [*changes, *remedy.settings]), shape, known(device)
            )
            assert again.fits, (name, device, changes, remedy)
            most = max(one.memory_bytes for one in again.trainings)
            assert most == pytest.approx(remedy.memory_bytes)
