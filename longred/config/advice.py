"""Which step, windows and block lengths work together: what messages about steps propose.

Every proposal is a setting to type in, with all the others that have to change with it.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from longred.config.derived import doubled, step_unit
from longred.config.section import MAX_NUMBER

if TYPE_CHECKING:
    from longred.config.run import RunConfig

MANY_ROWS = 16
"""A smallest step with more long rows for each process comes of windows with few common factors."""

_FACTORS = (128, 256, 512, 1024)
"""Windows that are multiples of these have many factors."""

_MAX_PARTS = 32
"""Smallest short block that is proposed, as a part of the original window."""


def unit_of(config: "RunConfig") -> int:
    """Return the number whose multiples are the possible values of `training.step_tokens`.

    Each multiple gives every bucket of every method, at every window, a whole number of blocks
    that the processes can divide.
    """
    units = []
    for at_window in (*config.windows(), config):
        training = at_window.training
        methods = dict.fromkeys(training.methods(), training.lora.objectives)
        layout = training.parallel
        units.append(step_unit(training.block_lengths(), training.ratio, methods, layout))
    return math.lcm(*units)


def step_advice(config: "RunConfig") -> str:
    """Return which values of `training.step_tokens` next to the given one are possible.

    If the block lengths have few factors in common, a nearby window with smaller steps follows.
    """
    unit = unit_of(config)
    reason = few_factors(config)
    other = nearby(config) if reason else []
    if other:
        reason = f"{reason.partition(': ')[0]}; smaller steps work with {' '.join(other)}"
    if unit >= MAX_NUMBER:
        return f"none that works is below {MAX_NUMBER:,}{reason}"
    below = config.training.step_tokens // unit * unit
    if below:
        return f"the nearest that work are {below} and {below + unit}{reason}"
    steps = _as_many_tokens(config, unit)
    as_much = f" ({steps} then reads as much text)" if steps else ""
    return f"the smallest that works is {unit}{as_much}{reason}"


def few_factors(config: "RunConfig") -> str:
    """Return why the smallest step is large, if the block lengths are the reason; else nothing."""
    if _is_small(config):
        return ""
    windows = [window.target_window for window in (*config.windows(), config)]
    lengths = (config.data.short_length, config.original_window, *windows)
    return (
        f"; the blocks of {', '.join(map(str, lengths))} tokens have few factors in common: with "
        "windows and data.short_length that are multiples of a large number, such as 1024, smaller "
        "steps work"
    )


def nearby(config: "RunConfig") -> list[str]:
    """Return the settings of the nearest window whose steps are small; none if there is none."""
    other = at_nearest_window(config)
    return _settings(config, other.target_window, other.data.short_length) if other else []


def at_nearest_window(config: "RunConfig") -> "RunConfig | None":
    """Return the run at the nearest window whose steps are small, for `unit_of`; None if none is.

    A window that also works with the present step and short blocks counts as nearer.
    """
    found = []
    for short in _short_lengths(config):
        for target in _windows(config):
            other = _changed(config, target, short)
            if _is_small(other) and _is_near_enough(other):
                distance = abs(target - config.target_window) / config.target_window
                is_new_step = config.training.step_tokens % unit_of(other) != 0
                is_new_short = short != config.data.short_length
                found.append((distance + is_new_step / 4 + is_new_short / 2, target, short))
    return _changed(config, *min(found)[1:]) if found else None


def farthest(config: "RunConfig", limit: int) -> list[str]:
    """Return the settings of a large window up to a limit; none if none works.

    It is the largest that works with the present step, else about the largest with another one.

    Args:
        config: the run.
        limit: largest window that is allowed, tokens.
    """
    short, reached = config.data.short_length, _reached(config)
    doublings = (2**power for power in range(limit.bit_length()))
    candidates = {limit, *(limit // base * base for base in (*_bases(config), *doublings) if base)}
    found = []
    for target in candidates:
        other = _changed(config, target, short)
        if target > reached and _is_small(other):
            found.append((config.training.step_tokens % unit_of(other) == 0, target))
    return _settings(config, max(found)[1], short) if found else []


def shorter(config: "RunConfig") -> list[str]:
    """Return the settings of the longest short block that works; none if none does."""
    for short in _short_lengths(config):
        if unit_of(_changed(config, config.target_window, short)) < MAX_NUMBER:
            return _settings(config, config.target_window, short)
    return []


def _is_small(config: "RunConfig") -> bool:
    processes = config.training.parallel.num_processes
    return unit_of(config) <= MANY_ROWS * processes * config.target_window


def _is_near_enough(config: "RunConfig") -> bool:
    """Return whether skipped positions reach the window from within the original one."""
    methods = config.training.methods()
    skips = any(config.training.recipe(name).positions in ("cream", "uniform") for name in methods)
    return not skips or config.original_window**2 > 8 * config.target_window


def _reached(config: "RunConfig") -> int:
    """Return the last window before the target window."""
    return max(config.original_window, *(w.target_window for w in config.extension.windows), 0)


def _bases(config: "RunConfig") -> tuple[int, ...]:
    original, short = config.original_window, config.data.short_length
    return (math.lcm(original, short), original, *_FACTORS)


def _windows(config: "RunConfig") -> Iterator[int]:
    """Yield windows near the wanted one that share factors with the other block lengths."""
    wanted, reached = config.target_window, _reached(config)
    for base in _bases(config):
        below = wanted // base * base
        yield from (window for window in (below, below + base) if reached < window <= 2 * wanted)


def _short_lengths(config: "RunConfig") -> Iterator[int]:
    """Yield lengths of short blocks: the wanted one if it is allowed, then divisors, longest first.

    Half of an odd window comes last: it shares no factor with it.
    """
    original, wanted = config.original_window, config.data.short_length
    most = original // 2
    if wanted <= most:
        yield wanted
    for parts in range(2, _MAX_PARTS + 1):
        length = original // parts
        if original % parts == 0 and length < wanted:
            yield length
    if most and wanted > most:
        yield most


def _changed(config: "RunConfig", target: int, short: int) -> "RunConfig":
    """Return the run at another window and short length; only what steps depend on changes."""
    data = config.data.model_copy(update={"target_window": target, "short_length": short})
    training = config.training.model_copy(update={"target_window": target, "short_length": short})
    return config.model_copy(update={"target_window": target, "data": data, "training": training})


def _settings(config: "RunConfig", target: int, short: int) -> list[str]:
    """Return what has to be typed in for a window and a short length, nearest step included."""
    found = []
    if target != config.target_window:
        found.append(f"target_window={target}")
    if short != config.data.short_length:
        found.append(f"data.short_length={short}")
    unit, step = unit_of(_changed(config, target, short)), config.training.step_tokens
    if step % unit:
        wanted = max(1, round(step / unit)) * unit
        found.append(f"training.step_tokens={wanted}")
        if wanted > 2 * step and (steps := _as_many_tokens(config, wanted)):
            found.append(steps)
    lengths = config.evaluation.ruler.lengths
    if lengths and max(lengths) > target:
        listed = ",".join(map(str, doubled(config.original_window, target)))
        found.append(f"evaluation.ruler.lengths=[{listed}]")
    lengths = config.evaluation.perplexity.lengths
    if lengths and max(lengths) > target:
        listed = ",".join(str(length) for length in lengths if length <= target)
        found.append(f"evaluation.perplexity.lengths=[{listed}]")
    return found


def _as_many_tokens(config: "RunConfig", step_tokens: int) -> str:
    """Return the number of steps of a size that read as many tokens; nothing if it cannot work."""
    training = config.training
    num_steps = max(1, round(training.num_steps * training.step_tokens / step_tokens))
    changed = training.model_copy(update={"num_steps": num_steps})
    works = changed.settings_problem(trains_adapters="lora" in training.methods()) is None
    return f"training.num_steps={num_steps}" if works else ""
