"""What a message proposes is accepted when it is typed in, the first time."""

import copy
import random
import re
from collections import Counter
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from longred.config import RunConfig
from longred.cost.epochs import epochs_of, refuse_too_many
from longred.data.quotas import source_quotas
from longred.errors import ConfigError
from longred.recipes import apply_override

SETTINGS = re.compile(r"(?:(?:use|with) )((?:[a-z_]+(?:\.[a-z_]+)*=[^ ;)]+ ?)+)")
STEPS = re.compile(r"(?:nearest that work are|smallest that works is) (\d+)(?: and (\d+))?")
AS_MUCH = re.compile(r"smallest that works is (\d+) \((training\.num_steps=\d+) then")
EPOCHS = (
    (re.compile(r"lower training\.num_steps to (\d+)"), "training.num_steps"),
    (re.compile(r"give at least (\d+) tokens of text"), "data.num_tokens"),
    (re.compile(r"or raise training\.max_epochs to (\d+)"), "training.max_epochs"),
    (re.compile(r"one block of \d+; give at least (\d+)"), "data.num_tokens"),
)
METHODS = (
    "longred-c",
    "longred-u",
    "mix-cpt",
    "cpt",
    "lora",
    "pose",
    "logit-distill",
    "recalibrate",
)


def refusal(values: dict[str, Any], *, reads: bool) -> str | None:
    """Return the first message about a recipe, or None; `reads` counts epochs too."""
    try:
        config = RunConfig.model_validate(copy.deepcopy(values))
        if reads:
            for at_window in (config, *config.windows()):
                source_quotas(at_window.data)
            refuse_too_many(config, epochs_of(config))
    except (ValidationError, ConfigError) as error:
        return str(error)
    return None


def proposals(message: str) -> list[tuple[str, ...]]:
    """Return each proposal of a message, as the settings to type in."""
    found = [tuple(match.strip(",").split()) for match in SETTINGS.findall(message)]
    found = [tuple(setting.strip(",") for setting in settings) for settings in found]
    for values in STEPS.findall(message):
        found += [(f"training.step_tokens={value}",) for value in values if value]
    found += [(f"training.step_tokens={n}", steps) for n, steps in AS_MUCH.findall(message)]
    for pattern, key in EPOCHS:
        found += [(f"{key}={value}",) for value in pattern.findall(message)]
    return found


def typed_in(values: dict[str, Any], settings: tuple[str, ...]) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    for setting in settings:
        apply_override(changed, setting)
    return changed


def random_recipe(rng: random.Random) -> dict[str, Any]:
    """Return a recipe that works up to the way its blocks divide a step, and what skips allow."""
    original = rng.choice([64, 128, 240, 256, 900, 1000, 2048, 8192, rng.randrange(64, 5000)])
    target = rng.choice([original * rng.randrange(2, 9), original + rng.randrange(1, 9 * original)])
    short = rng.choice([original // 2, original // 4, rng.randrange(1, original + 1)])
    if 2 * short > original:
        target = 2 * original  # two independent faults would need two messages
    ratio = {bucket: rng.randrange(1, 6) for bucket in ("long", "short", "original")}
    values: dict[str, Any] = {
        "name": "odd",
        "original_window": original,
        "target_window": target,
        "data": {
            "num_tokens": rng.choice([10**7, 10**9]),
            "short_length": short,
            "sources": [{"name": "text", "kind": "library"}],
        },
        "training": {
            "method": rng.choice(METHODS),
            "baselines": rng.choice([[], ["merge"], ["attention-distill", "merge"]]),
            "parallel": {"num_processes": rng.choice([1, 1, 1, 2, 3, 8])},
        },
    }
    if values["training"]["method"] == "mix-cpt" and not values["training"]["baselines"][1:]:
        ratio["original"] *= rng.randrange(2)
    if rng.random() < 0.5:
        values["data"]["ratio"] = ratio
    if rng.random() < 0.8:
        values["training"]["step_tokens"] = rng.choice(
            [8192, 2**21, rng.randrange(1, 10**6), original * rng.randrange(1, 500)]
        )
        values["training"]["num_steps"] = rng.choice([1, 60, 512, 10**5])
        if rng.random() < 0.3:
            values["training"] |= {"warmup_steps": 20, "schedule": "cosine"}
            values["training"]["num_steps"] = 512
    if rng.random() < 0.3:
        values["evaluation"] = {"ruler": {"lengths": [original, target]}}
    if rng.random() < 0.2 and target > original + 2 and values["training"]["method"] != "lora":
        between = rng.randrange(original + 1, target)
        values["extension"] = {"windows": [{"target_window": between}]}
    return values


@pytest.mark.parametrize("seed", range(4))
def test_every_proposal_about_steps_and_windows_is_accepted(seed: int) -> None:
    rng = random.Random(seed)
    seen: Counter[str] = Counter()
    for _ in range(120):
        values = random_recipe(rng)
        message = refusal(values, reads=False)
        if message is None:
            seen["accepted"] += 1
            continue
        for settings in proposals(message):
            seen[settings[0].partition("=")[0]] += 1
            again = refusal(typed_in(values, settings), reads=False)
            assert again is None, f"{yaml.safe_dump(values)}\n{message}\n{settings}\n{again}"
    # Each kind of proposal has been seen.
    assert min(seen[key] for key in ("target_window", "training.step_tokens", "accepted")) > 3
    assert seen["data.short_length"] > 3


@pytest.mark.parametrize("seed", range(2))
def test_every_proposal_about_amounts_of_text_is_accepted(seed: int) -> None:
    rng = random.Random(100 + seed)
    num_typed = 0
    while num_typed < 100:
        values = random_recipe(rng)
        values["data"]["num_tokens"] = rng.choice([10, 1000, 10**5, 10**7])
        if "step_tokens" not in values["training"] or refusal(values, reads=False):
            continue
        message = refusal(values, reads=True)
        for settings in proposals(message or ""):
            num_typed += 1
            again = refusal(typed_in(values, settings), reads=True)
            # Where a bucket got no block, the number of steps is looked at only now.
            if again and "less than one block" in str(message):
                assert "training.max_epochs" in again
                continue
            assert again is None, f"{yaml.safe_dump(values)}\n{message}\n{settings}\n{again}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["target_window=900"], "smaller steps work with target_window=1024"),
        (
            ["target_window=8192"],
            "use target_window=4096 evaluation.ruler.lengths=[256,512,",
        ),
        (["data.short_length=200"], "use data.short_length=128"),
    ],
)
def test_proposals_by_hand(changes: list[str], words: str) -> None:
    """256 tokens reach 8,191 by skips; steps of 8,192 have 4,096 long, 3,072 short tokens."""
    values = {
        "name": "own",
        "original_window": 256,
        "target_window": 1024,
        "data": {
            "num_tokens": 983040,
            "short_length": 128,
            "sources": [{"name": "text", "kind": "library"}],
        },
        "training": {"step_tokens": 8192, "num_steps": 60},
    }
    message = refusal(typed_in(values, tuple(changes)), reads=False)
    assert words in (message or "")
