"""How often a training reads each bucket of its data, and what to change if that is too often."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from longred.config.advice import few_factors
from longred.data.quotas import least_num_tokens
from longred.errors import ConfigError
from longred.method.methods import METHODS

if TYPE_CHECKING:
    from longred.config import RunConfig

MANY_EPOCHS = 4.0
"""Epochs above which a training is warned about: more repeats hardly lower the loss on new text
(Muennighoff et al., arXiv 2305.16264)."""


KEY = "training.num_steps"


class Epochs(NamedTuple):
    """How often a training reads a bucket.

    Attributes:
        method: the method that is trained.
        target_window: window of the training, tokens.
        bucket: name of the bucket.
        key: the setting of the number of steps.
        num_steps: optimizer steps.
        num_rows: blocks of the bucket in a step.
        num_blocks: training blocks of the bucket.
        block_length: tokens of a block.
    """

    method: str
    target_window: int
    bucket: str
    key: str
    num_steps: int
    num_rows: int
    num_blocks: int
    block_length: int

    @property
    def times(self) -> float:
        """How often each block is read, on average."""
        return self.num_steps * self.num_rows / self.num_blocks


def epochs_of(config: "RunConfig") -> list[Epochs]:
    """Return how often each training of a recipe reads each of its buckets.

    Args:
        config: the recipe.

    Raises:
        ConfigError: a bucket gets no whole block.
    """
    found = []
    own = [window.num_steps is not None for window in config.extension.windows]
    keys = [f"extension.windows.{n}.num_steps" if own[n] else KEY for n in range(len(own))]
    for at_window, key in zip((*config.windows(), config), (*keys, KEY), strict=True):
        training, data = at_window.training, at_window.data
        lengths = training.block_lengths()
        trained = (METHODS[method].merges or method for method in training.methods())
        for method in dict.fromkeys(trained):
            for bucket, rows in training.rows(method).items():
                tokens = data.num_tokens * training.ratio[bucket] // sum(training.ratio.values())
                if tokens < lengths[bucket]:
                    raise ConfigError(
                        f"data.num_tokens: {data.num_tokens} gives the {bucket} bucket {tokens} "
                        f"tokens, less than one block of {lengths[bucket]}; give at least "
                        f"{least_num_tokens(config.data)}"
                    )
                found.append(
                    Epochs(
                        method,
                        at_window.target_window,
                        bucket,
                        key,
                        training.num_steps,
                        rows,
                        tokens // lengths[bucket],
                        lengths[bucket],
                    )
                )
    return found


def refuse_too_many(config: "RunConfig", found: Sequence[Epochs]) -> None:
    """Refuse trainings that read a bucket more often than `training.max_epochs`.

    Raises:
        ConfigError: one does; the message names values that are allowed.
    """
    limit = config.training.max_epochs
    over = [one for one in found if one.times > limit]
    if not over:
        return
    most = max(over, key=lambda one: one.times)
    read = most.num_steps * most.num_rows * most.block_length
    steps: dict[str, int] = {}
    for one in over:
        allowed = math.floor(limit * one.num_blocks / one.num_rows)
        steps[one.key] = min(steps.get(one.key, allowed), allowed)
    lower = " and ".join(f"{key} to {number}" for key, number in steps.items())
    training = config.training
    fewer = training.model_copy(update={"num_steps": steps.get(KEY) or training.num_steps})
    trains_adapters = "lora" in training.methods()
    fits_schedule = fewer.settings_problem(trains_adapters=trains_adapters) is None
    lower = f"lower {lower}, " if min(steps.values()) and fits_schedule else ""
    # Not even one step is allowed.
    uneven = few_factors(config) if not min(steps.values()) else ""
    raise ConfigError(
        f"training.max_epochs: {most.num_steps:,} steps of {most.method} read {read:,} tokens of "
        f"the {most.bucket} bucket, which holds {most.num_blocks * most.block_length:,}: each text "
        f"is read {most.times:,.1f} times, and {limit:g} are allowed; {lower}give at least "
        f"{_needed_tokens(config, over)} tokens of text (data.num_tokens), or raise "
        f"training.max_epochs to {math.ceil(most.times)}{uneven}"
    )


def _needed_tokens(config: "RunConfig", over: Iterable[Epochs]) -> int:
    """Return the smallest `data.num_tokens` with which no training exceeds the limit."""
    ratio = config.data.ratio
    whole = sum(ratio.values())
    needed = 0
    for one in over:
        blocks = math.ceil(one.num_steps * one.num_rows / config.training.max_epochs)
        share = ratio[one.bucket]  # type: ignore[index]
        needed = max(needed, -(-blocks * one.block_length * whole // share))
    return needed


def warning(found: Sequence[Epochs]) -> str | None:
    """Return a sentence about trainings that read a bucket more than `MANY_EPOCHS` times."""
    over = [one for one in found if one.times > MANY_EPOCHS]
    if not over:
        return None
    most = max(over, key=lambda one: one.times)
    return (
        f"{most.key}: {most.method} reads each text of the {most.bucket} bucket "
        f"{most.times:,.1f} times; above {MANY_EPOCHS:g} times a training learns little more and "
        "begins to learn by heart; use fewer steps or more text (data.num_tokens)"
    )
