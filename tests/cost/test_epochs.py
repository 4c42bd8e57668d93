"""How often texts are read, against counts by hand; what is proposed is allowed."""

import random
import re

import pytest

from longred.config import RunConfig
from longred.cost.epochs import epochs_of, refuse_too_many, warning
from longred.errors import ConfigError
from longred.recipes import names
from longred.runs.record import load_config

RECIPES = tuple(sorted(names()))


def refusal(config: RunConfig) -> str | None:
    try:
        refuse_too_many(config, epochs_of(config))
    except ConfigError as error:
        return str(error)
    return None


def test_counts_of_the_demo() -> None:
    """983,040 tokens: half of them in 480 long blocks, an eighth in 480 original ones."""
    found = {(one.method, one.bucket): one for one in epochs_of(load_config("demo"))}
    assert {key: one.num_blocks for key, one in found.items()} == {
        ("longred-c", "long"): 480,
        ("longred-c", "short"): 2880,
        ("longred-c", "original"): 480,
        ("cpt", "long"): 480,
    }
    # 60 steps of 4 blocks, or of 8 where all tokens are long.
    assert [one.times for one in found.values()] == [0.5, 0.5, 0.5, 1.0]


@pytest.mark.parametrize("name", RECIPES)
def test_packaged_recipes_read_no_text_often(name: str) -> None:
    config = load_config(name)
    assert refusal(config) is None
    assert warning(epochs_of(config)) is None


def test_between_the_warning_and_the_limit() -> None:
    config = load_config("demo", ["training.baselines=[]", "data.num_tokens=65536"])
    assert refusal(config) is None
    assert "longred-c reads each text of the long bucket 7.5 times" in (
        warning(epochs_of(config)) or ""
    )


def test_thousands_of_epochs_are_refused() -> None:
    """2,148 readings of the same text were planned without a word."""
    changes = ["training.num_steps=131072", "data.num_tokens=500000", "training.baselines=[]"]
    message = refusal(load_config("demo", changes)) or ""
    assert message.startswith("training.max_epochs: 131,072 steps of longred-c read")
    # 131,072 x 4 / 244.
    assert "each text is read 2,148.7 times, and 16 are allowed" in message
    assert refusal(load_config("demo", [*changes, "training.max_epochs=2149"])) is None


def test_the_limit_changes_no_digest() -> None:
    plain, raised = load_config("demo"), load_config("demo", ["training.max_epochs=100"])
    assert plain.digest_values() == raised.digest_values()


def test_a_window_on_the_way_names_its_own_steps() -> None:
    way = "extension.windows=[{target_window: 512, rope_theta: 4e4, num_steps: 100000}]"
    message = refusal(load_config("demo", [way])) or ""
    assert "lower extension.windows.0.num_steps to 960" in message


@pytest.mark.parametrize("seed", range(10))
def test_each_proposal_is_allowed(seed: int) -> None:
    rng = random.Random(seed)
    changes = {
        "training.num_steps": rng.randrange(200, 5000),
        "data.num_tokens": rng.randrange(20_000, 60_000),
        "training.max_epochs": rng.choice([1, 2.5, 7]),
        "training.baselines": rng.choice(["[]", "[cpt]", "[mix-cpt, cream]"]),
    }

    def check(**values: object) -> str | None:
        every = changes | {key.replace("_in_", ".", 1): value for key, value in values.items()}
        return refusal(load_config("demo", [f"{key}={value}" for key, value in every.items()]))

    message = check() or ""
    (tokens,) = re.findall(r"at least ([\d,]+) tokens", message)
    assert check(data_in_num_tokens=tokens.replace(",", "")) is None
    (epochs,) = re.findall(r"raise training.max_epochs to (\d+)", message)
    assert check(training_in_max_epochs=epochs) is None
    for steps in re.findall(r"lower training.num_steps to ([\d,]+)", message):
        assert check(training_in_num_steps=steps.replace(",", "")) is None


def test_one_step_of_odd_windows_that_reads_all_text_hundreds_of_times() -> None:
    """More text or epochs are no way out where the smallest step has a billion tokens."""
    values = {
        "name": "odd",
        "original_window": 8192,
        "target_window": 16390,
        "data": {"num_tokens": 1_600_000, "sources": [{"name": "text", "kind": "library"}]},
    }
    message = refusal(RunConfig.model_validate(values)) or ""
    assert "1 steps of longred-c read 67,133,440 tokens of the original bucket" in message
    assert "the blocks of 1024, 8192, 16390 tokens have few factors in common" in message
    assert refusal(RunConfig.model_validate({**values, "target_window": 16384})) is None
