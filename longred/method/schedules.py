"""The learning rate of every step, as pure functions of the step: nothing to save or restore.

Steps count from 1. Every schedule rises linearly to `learning_rate` over the first `warmup_steps`
and, where it falls, reaches `min_learning_rate` in the last step. Sources: cosine arXiv 1608.03983;
warm-up, stable, decay (wsd) 2404.06395, with the linear decay of 2405.18392.
"""

import math
from collections.abc import Callable
from typing import Protocol


class Settings(Protocol):
    """What a schedule reads of a training: its job, or the section of a recipe."""

    @property
    def schedule(self) -> str: ...  # noqa: D102
    @property
    def num_steps(self) -> int: ...  # noqa: D102
    @property
    def learning_rate(self) -> float: ...  # noqa: D102
    @property
    def min_learning_rate(self) -> float: ...  # noqa: D102
    @property
    def warmup_steps(self) -> int: ...  # noqa: D102
    @property
    def decay_steps(self) -> int: ...  # noqa: D102


def _constant(step: int, settings: Settings) -> float:
    return 0.0


def _cosine(step: int, settings: Settings) -> float:
    length = settings.num_steps - settings.warmup_steps
    return (1.0 - math.cos(math.pi * _part_of_last(length, step, settings))) / 2


def _wsd(step: int, settings: Settings) -> float:
    return _part_of_last(settings.decay_steps, step, settings)


def _part_of_last(length: int, step: int, settings: Settings) -> float:
    """Return which part of the last `length` steps is done once this one is."""
    return max(0.0, 1.0 - (settings.num_steps - step) / length)


SCHEDULES: dict[str, Callable[[int, Settings], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "wsd": _wsd,
}
"""How far the rate has fallen in a step, from 0 at its height to 1 at its least, by name."""


def learning_rate(step: int, settings: Settings) -> float:
    """Return the learning rate of a step, counted from 1."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    fall = SCHEDULES[settings.schedule](step, settings)
    return settings.learning_rate - fall * (settings.learning_rate - settings.min_learning_rate)


def schedule_problem(settings: Settings) -> str | None:
    """Return what is wrong with a schedule, in words that name the setting, or None."""
    name, decay = settings.schedule, settings.decay_steps
    if name not in SCHEDULES:
        return f"training.schedule: {name!r} is not one of {', '.join(SCHEDULES)}"
    if (name == "wsd") != (decay > 0):
        return (
            "training.decay_steps: give the length of the decay with schedule wsd, and only with "
            f"it; got {decay} with {name}"
        )
    if name == "constant" and settings.min_learning_rate > 0:
        return "training.min_learning_rate: schedule constant never falls; use cosine or wsd"
    if not 0 <= settings.min_learning_rate <= settings.learning_rate:
        return (
            f"training.min_learning_rate: {settings.min_learning_rate:g} is not between 0 and "
            f"training.learning_rate ({settings.learning_rate:g})"
        )
    falling = {"constant": 0, "cosine": 1, "wsd": decay}[name]
    if falling and settings.warmup_steps + falling > settings.num_steps:
        return (
            f"training.warmup_steps: {settings.warmup_steps} steps of warm-up and {falling} of "
            f"decay do not fit in training.num_steps ({settings.num_steps})"
        )
    return None
