"""Fill prompts up to their length, measured in the model's own tokens.

Every sample is a generator that yields prompts, receives their sizes in tokens and returns the
sample. `run` advances many of them together, so that each batch of prompts is measured at once.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from longred.errors import ConfigError
from longred.evaluation.counting import Counter, Prompt
from longred.evaluation.ruler.questions import Questions

FULL_LENGTH = 4096
"""Shortest length (tokens) with RULER's own parameters; shorter ones use the compact parameters."""

COMPACT_BUDGET = 16
"""Generation budget (tokens) for a number of seven digits, one token each, with a margin."""

_INTERPOLATIONS = 6

Parameters = Literal["full", "compact"]
Revision = Literal["paper", "current"]
Steps = Generator[Prompt, int, dict[str, Any]]
"""Yields prompts, receives their sizes in tokens, returns the sample."""
Start = Callable[[random.Random, int], Steps]
"""Starts the sample with a given index, drawing from its own random generator."""


@dataclass(frozen=True, kw_only=True)
class SampleSpec:
    """Everything that the samples of a task depend on, except their random numbers.

    Attributes:
        task: name of the task.
        length: tokens of prompt and answer together.
        parameters: `full` for RULER's own, `compact` for windows below 4,096.
        revision: revision of RULER's wording.
        settings: the task's settings under these parameters.
        count: counts the tokens of prompts.
        haystack: documents for tasks that hide needles in text.
        questions: questions for question answering tasks.
    """

    task: str
    length: int
    parameters: Parameters
    revision: Revision
    settings: Any
    count: Counter
    haystack: Sequence[str]
    questions: Questions

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens that are left for the prompt."""
        return self.length - int(self.settings.budget)

    @property
    def slack_tokens(self) -> int:
        """Tokens that a prompt may leave unused: 0.4 % of the length, none in short windows."""
        return self.length // 256 if self.parameters == "full" else 0


@dataclass(frozen=True)
class Draft:
    """A sample with some amount of haystack.

    Attributes:
        prompt: the task, then the prefix of the answer.
        outputs: the references.
        depths: share of the haystack before each reference; None if nothing is hidden in it.
    """

    prompt: Prompt
    outputs: Sequence[str]
    depths: list[float] | None = None


def run(samples: Sequence[Steps], count: Counter) -> list[dict[str, Any]]:
    """Run all samples to their end, measuring what they yield at the same time in one batch."""
    finished: dict[int, dict[str, Any]] = {}
    pending = {number: next(steps) for number, steps in enumerate(samples)}
    while pending:
        sizes = count(list(pending.values()))
        measured, pending = zip(pending, sizes, strict=True), {}
        for number, size in measured:
            try:
                pending[number] = samples[number].send(size)
            except StopIteration as end:
                finished[number] = end.value
    return [finished[number] for number in range(len(samples))]


def fill(
    spec: SampleSpec,
    draft: Callable[[int], Draft],
    prefix: str,
    *,
    smallest: int,
    largest: int,
    tokens: Callable[[int], float],
) -> Steps:
    """Return the sample with the most haystack that fits.

    Args:
        spec: sets the length.
        draft: creates the sample with that many units of haystack.
        prefix: prefix of the answer.
        smallest, largest, tokens: see `fit`.
    """
    draft = cache(draft)
    num_units, num_tokens = yield from fit(
        lambda num_units: draft(num_units).prompt,
        spec.max_prompt_tokens,
        smallest=smallest,
        largest=largest,
        tokens=tokens,
        slack=spec.slack_tokens,
    )
    return finished_sample(draft(num_units), prefix, num_tokens, num_units)


def finished_sample(draft: Draft, prefix: str, num_tokens: int, num_units: int) -> dict[str, Any]:
    """Return the fields of a sample; see `generate`."""
    sample = {
        # A line end before the prefix belongs to the question, a space does not.
        "input": str(draft.prompt).removesuffix(prefix).removesuffix(" "),
        "prefix": prefix,
        "outputs": list(draft.outputs),
        "num_tokens": num_tokens,
        "num_units": num_units,
    }
    if draft.depths is not None:
        sample["depths"] = draft.depths
        if len(draft.depths) == 1:
            sample["depth"] = draft.depths[0]
    return sample


def fit(
    prompt: Callable[[int], Prompt],
    room: int,
    *,
    smallest: int,
    largest: int,
    tokens: Callable[[int], float],
    slack: int = 0,
) -> Generator[Prompt, int, tuple[int, int]]:
    """Find the largest number of haystack units whose prompt takes at most `room` tokens.

    Args:
        prompt: creates the prompt with that many units.
        room: tokens that the prompt may take.
        smallest: smallest number of units.
        largest: largest number of units.
        tokens: increasing estimate of the tokens of the first n units. Only its shape matters: it
            is anchored and scaled by the measured sizes, and decides how fast the search ends.
        slack: tokens that may stay unused; if positive, the search trusts the estimate of the next
            unit instead of measuring it.

    Returns:
        The number of units, and the measured tokens of its prompt.

    Raises:
        ConfigError: the prompt does not fit even with the smallest number.
    """
    low, high = smallest, largest + 1
    low_size = first_size = size = yield prompt(smallest)
    if first_size > room:
        raise ConfigError(
            f"evaluation.ruler.lengths: without any haystack a prompt takes {first_size} tokens of "
            f"this tokenizer, but only {room} are left beside the answer; "
            f"use lengths at least {first_size - room} tokens longer"
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
    """Return the estimate for units of about equal size."""
    return lambda num_units: unit_tokens * num_units


def per_unit(text: Callable[[int], str], count: Counter, num_units: int = 16) -> float:
    """Return the mean tokens of a unit, measured on `num_units` further units."""
    few, many = count([text(num_units), text(2 * num_units)])
    return max(1, many - few) / num_units


def cumulative(pieces: Sequence[str], count: Counter, step: int = 64) -> Callable[[int], float]:
    """Return the estimate for units of running text, from the sizes of chunks of `step` units."""
    starts = range(0, len(pieces), step)
    # A trailing space would become a token of its own.
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
