"""How much haystack fits: prompts are filled up to their length, in the model's own tokens.

A sample is made by a generator that yields prompts to be measured, is sent their sizes and returns
the sample. So the prompts of many samples are measured together, and each depends on its own alone.
"""

from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from typing import Any

from longred.errors import ConfigError
from longred.evaluation.counting import Counter, Prompt

FULL_LENGTH = 4096
"""Tokens from which on RULER's own parameters are used; below, the compact ones."""

COMPACT_BUDGET = 16
"""Tokens kept for one number of seven digits, one token a digit, and a little more."""

Steps = Generator[Prompt, int, dict[str, Any]]
_INTERPOLATIONS = 6


def run(samples: Sequence[Steps], count: Counter) -> list[dict[str, Any]]:
    """Return the finished samples, measuring in one batch what all of them ask at a time."""
    finished: dict[int, dict[str, Any]] = {}
    asking = {number: next(steps) for number, steps in enumerate(samples)}
    while asking:
        sizes = count(list(asking.values()))
        answered, asking = zip(asking, sizes, strict=True), {}
        for number, size in answered:
            try:
                asking[number] = samples[number].send(size)
            except StopIteration as end:
                finished[number] = end.value
    return [finished[number] for number in range(len(samples))]


def fit(
    prompt: Callable[[int], Prompt],
    room: int,
    *,
    smallest: int,
    largest: int,
    tokens: Callable[[int], float],
    slack: int = 0,
) -> Generator[Prompt, int, tuple[int, int]]:
    """Search the largest number of haystack units whose prompt takes at most `room` tokens.

    Args:
        prompt: the prompt with that many units.
        room: tokens that the prompt may take.
        smallest: units that a prompt has at least.
        largest: units there are.
        tokens: estimate, increasing, of what the first n units take. Only its shape counts: it is
            anchored and scaled by what was measured, and decides how fast the search ends.
        slack: tokens that may be left unused; if any, the estimate of the next unit is believed
            and not measured.

    Returns:
        The number of units, and the measured tokens of its prompt.

    Raises:
        ConfigError: the prompt does not fit even with the smallest number.
    """
    low, high = smallest, largest + 1
    low_size = first_size = size = yield prompt(smallest)
    if first_size > room:
        raise ConfigError(
            f"evaluation.ruler.lengths: a prompt takes {first_size} tokens of this tokenizer "
            f"without any haystack and only {room} are left beside the answer; "
            f"ask for lengths at least {first_size - room} tokens longer"
        )
    probe, scale, num_probes = smallest, 1.0, 0
    while high - low > 1:
        unit = scale * (tokens(low + 1) - tokens(low))
        if slack and num_probes and room - low_size < max(unit, slack):
            break
        if num_probes < _INTERPOLATIONS:
            target = tokens(probe) + (room - size) / scale
            probe = bisect_right(range(high), target, lo=low + 1, key=tokens) - 1
            probe = min(max(probe, low + 1), high - 1)
        else:
            probe = (low + high) // 2
        size = yield prompt(probe)
        if size <= room:
            low, low_size = probe, size
        else:
            high = probe
        grown = tokens(probe) - tokens(smallest)
        scale = max(size - first_size, 1) / grown if grown > 0 else 1.0
        num_probes += 1
    return low, low_size


def linear(unit_tokens: float) -> Callable[[int], float]:
    """Return the estimate for units that all take about the same."""
    return lambda num_units: unit_tokens * num_units


def per_unit(text: Callable[[int], str], count: Counter, num_units: int = 16) -> float:
    """Return the tokens that one of `num_units` further units takes."""
    few, many = count([text(num_units), text(2 * num_units)])
    return max(1, many - few) / num_units


def cumulative(pieces: Sequence[str], count: Counter, step: int = 64) -> Callable[[int], float]:
    """Return the estimate for units of running text, from sizes of chunks of `step` units."""
    starts = range(0, len(pieces), step)
    # A space at the end would be a token of its own there.
    chunks = ["".join(pieces[first : first + step]).rstrip() for first in starts]
    sums = [0.0]
    empty, *sizes = count(["", *chunks])
    for size in sizes:
        sums.append(sums[-1] + size - empty)

    def tokens(num_units: int) -> float:
        whole, rest = divmod(min(num_units, len(chunks) * step), step)
        following = sums[min(whole + 1, len(chunks))]
        return sums[whole] + (following - sums[whole]) * rest / step

    return tokens
