"""Fills prompts with whole pieces of very different sizes, such as questions or documents."""

import random
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence

from longred.evaluation.counting import Counter, Prompt

_NUM_ATTEMPTS = 8
_NUM_SWAPS = 8
# The choice of pieces ends after this many that do not fit.
_NUM_MISSES = 32
# Pieces that are counted at the same time.
_CHUNK = 64
# Budgets are multiples, so that many answers can be generated in one batch; the least margin.
_BUDGET_STEP, _BUDGET_MARGIN = 32, 8


def answer_budget(answer: str, count: Counter) -> int:
    """Return the tokens to reserve for an answer that has a size of its own."""
    (tokens,) = count([answer])
    return -(-(tokens + _BUDGET_MARGIN) // _BUDGET_STEP) * _BUDGET_STEP


def stream(rng: random.Random, pieces: Sequence[int], count: int) -> list[int]:
    """Return `count` pieces in random order; each repeats only after all others were taken.

    Returns none if there are no pieces.
    """
    drawn: list[int] = []
    while pieces and len(drawn) < count:
        drawn += rng.sample(pieces, min(count - len(drawn), len(pieces)))
    return drawn


class Pieces:
    """Pieces of a haystack, whose tokens are counted once each.

    Args:
        text: returns a piece as it stands in a prompt.
        count: counts the tokens of prompts.
    """

    def __init__(self, text: Callable[[int], str], count: Counter) -> None:
        self._text, self._count = text, count
        self._num_bos = count([""])[0]
        self._sizes: dict[int, int] = {}

    def sizes(self, pieces: Sequence[int]) -> list[int]:
        """Return the tokens of each piece."""
        fresh = [*dict.fromkeys(piece for piece in pieces if piece not in self._sizes)]
        if fresh:
            counted = self._count([self._text(piece) for piece in fresh])
            self._sizes |= {n: size - self._num_bos for n, size in zip(fresh, counted, strict=True)}
        return [self._sizes[piece] for piece in pieces]

    def choose(self, offered: Sequence[int], room: int) -> list[int]:
        """Return pieces that together take `room` tokens or slightly fewer.

        Takes them in order, each if it fits, and finally exchanges some for larger ones.
        """
        chosen: list[int] = []
        missed: list[int] = []
        for first in range(0, len(offered), _CHUNK):
            part = offered[first : first + _CHUNK]
            for piece, size in zip(part, self.sizes(part), strict=True):
                if size <= room:
                    chosen.append(piece)
                    room -= size
                else:
                    missed.append(piece)
            if len(missed) >= _NUM_MISSES:
                break
        self._exchange(chosen, missed, room)
        return chosen

    def _exchange(self, chosen: list[int], missed: list[int], room: int) -> None:
        """Replace chosen pieces by larger ones that did not fit, while that fills more."""
        for _ in range(_NUM_SWAPS):
            by_size = sorted(missed, key=self._sizes.__getitem__)
            limits = [self._sizes[piece] + room for piece in chosen]
            found = [bisect_right(by_size, n, key=self._sizes.__getitem__) - 1 for n in limits]
            gains = [
                self._sizes[by_size[index]] - self._sizes[piece] if index >= 0 else 0
                for index, piece in zip(found, chosen, strict=True)
            ]
            gain = max(gains, default=0)
            if gain <= 0:
                return
            place = gains.index(gain)
            piece = by_size[found[place]]
            missed.remove(piece)
            missed.append(chosen[place])
            chosen[place] = piece
            room -= gain


def pack(
    prompt: Callable[[list[int]], str], pieces: Pieces, offered: Sequence[int], room: int, size: int
) -> Generator[Prompt, int, tuple[list[int], int]]:
    """Find pieces whose prompt takes at most `room` tokens, and at least 99 % of them if possible.

    Args:
        prompt: creates the prompt with these pieces.
        pieces: counts and chooses the pieces.
        offered: the pieces to choose from, in order of preference.
        room: tokens that the prompt may take.
        size: tokens of the prompt without pieces, at most `room`.

    Returns:
        The pieces, and the measured tokens of their prompt.
    """
    best: list[int] = []
    best_size, wanted = size, room - size
    for attempt in range(_NUM_ATTEMPTS):
        chosen = pieces.choose(offered, wanted)
        size = yield prompt(chosen)
        if best_size < size <= room:
            best, best_size = chosen, size
        unused = room - size
        if 0 <= unused <= room // 100:
            break
        # Sizes of single pieces do not add up exactly. After an overflow the room shrinks by twice
        # the excess, because other pieces are chosen then.
        wanted += unused if unused > 0 else 2 * unused - attempt
    return best, best_size
