"""How much haystack fits: prompts are filled up to their length, in the model's own tokens."""

from collections.abc import Callable

from longred.errors import ConfigError

FULL_LENGTH = 4096
FULL_BUDGET, COMPACT_BUDGET = 128, 16
_INTERPOLATIONS = 6


def generation_budget(length: int) -> tuple[str, int]:
    """Return the name and size (tokens) of the room kept for the answer.

    RULER reserves 128 tokens; below 4,096 that would leave little else, so a compact budget holds
    a seven-digit number with one token a digit, and a little more.
    """
    return ("full", FULL_BUDGET) if length >= FULL_LENGTH else ("compact", COMPACT_BUDGET)


def largest_fit(size: Callable[[int], int], room: int, largest: int) -> int:
    """Return the largest number of haystack units whose prompt takes at most `room` tokens.

    A binary search whose first probes are interpolated: tokenizing a long prompt is what costs.

    Args:
        size: tokens of the prompt with that many units; grows with it.
        room: tokens that the prompt may take.
        largest: number of units there are.

    Raises:
        ConfigError: the prompt does not fit even without a haystack.
    """
    empty = size(0)
    if empty > room:
        raise ConfigError(
            f"evaluation.ruler.lengths: a prompt without any haystack takes {empty} tokens of this "
            f"tokenizer and only {room} are left beside the answer; "
            f"ask for lengths at least {empty - room} tokens longer"
        )
    few = max(1, min(32, largest))
    unit_tokens = max(0.5, (size(few) - empty) / few)
    low, low_size, high = 0, empty, largest + 1
    num_probes = 0
    while high - low > 1:
        probe = (low + high) // 2
        if num_probes < _INTERPOLATIONS:
            probe = min(high - 1, low + max(1, int((room - low_size) / unit_tokens)))
        probe_size = size(probe)
        if probe_size <= room:
            low, low_size = probe, probe_size
        else:
            high = probe
        unit_tokens = max(0.5, (probe_size - empty) / probe)
        num_probes += 1
    return low
