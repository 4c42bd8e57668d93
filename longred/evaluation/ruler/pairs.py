"""Key-value retrieval: one value asked of a long JSON object; where it stands tells what gets lost.

Not one of RULER's tasks. Form, wording and score follow Liu et al. 2023, "Lost in the Middle"
(arXiv 2307.03172; nelson-liu/lost-in-the-middle, MIT License). The code is our own.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

from longred.evaluation.ruler.fitting import Steps, fit, linear, per_unit
from longred.evaluation.ruler.request import Request, Start
from longred.evaluation.ruler.words import DRAWS, distinct

TASK = (
    "Extract the value corresponding to the specified key in the JSON object below.\n\n"
    'JSON data:\n{{{pairs}}}\n\nKey: "{key}"'
)
PREFIX = "Corresponding value:"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the object is made of.

    Attributes:
        keys, values: kinds of words, see `words.DRAWS`.
        budget: tokens kept for the answer.
    """

    keys: str = "uuids"
    values: str = "uuids"
    budget: int = 48


def prepare(request: Request) -> Start:
    """Return what begins a sample."""
    settings: Settings = request.settings
    room = linear(_tokens_per_pair(settings, request))

    def start(rng: random.Random, index: int) -> Steps:
        del index
        depth = rng.random()
        pairs: list[tuple[str, str]] = []
        draw = _pairs(settings, random.Random(rng.getrandbits(64)))  # noqa: S311

        @cache
        def prompt(num_pairs: int) -> str:
            pairs.extend(next(draw) for _ in range(num_pairs - len(pairs)))
            key, _ = pairs[_place(depth, num_pairs)]
            return TASK.format(pairs=_json(pairs[:num_pairs]), key=key)

        num_pairs, num_tokens = yield from fit(
            lambda num_pairs: f"{prompt(num_pairs)} {PREFIX}",
            request.room,
            smallest=1,
            largest=request.length,
            tokens=room,
            slack=request.slack,
        )
        place = _place(depth, num_pairs)
        return {
            "input": prompt(num_pairs),
            "prefix": PREFIX,
            "outputs": [pairs[place][1]],
            "num_tokens": num_tokens,
            "num_units": num_pairs,
            "depths": [round(place / max(1, num_pairs - 1), 4)],
        }

    return start


def _pairs(settings: Settings, rng: random.Random) -> Iterator[tuple[str, str]]:
    taken: set[str] = set()
    keys = distinct(partial(DRAWS[settings.keys], rng), taken)
    values = distinct(partial(DRAWS[settings.values], rng), taken)
    return zip(keys, values, strict=False)


def _place(depth: float, num_pairs: int) -> int:
    return min(int(depth * num_pairs), num_pairs - 1)


def _json(pairs: list[tuple[str, str]]) -> str:
    return ",\n ".join(f'"{key}": "{value}"' for key, value in pairs)


def _tokens_per_pair(settings: Settings, request: Request) -> float:
    draw = _pairs(settings, random.Random(0))  # noqa: S311
    pairs = [next(draw) for _ in range(32)]
    return per_unit(lambda count: _json(pairs[:count]), request.count)
