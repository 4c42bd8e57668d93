"""Random words, numbers and identifiers for needles, lists and coded text.

RULER's words are the lists of the wonderwords package. The small lists here are for the compact
parameters: their words take few tokens in any vocabulary, and the demo model never practises them.
"""

import math
import random
import string
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

_ADJECTIVES = """
absent amber arctic ashen balmy bleak blunt brisk bulky candid chilly civic coarse cosmic cozy
crude cubic deft dire drowsy eerie elastic elegant feeble fertile floral formal fragile frugal
gaudy glossy gloomy grim humid infinite jagged jovial lavish lunar marine mellow misty muddy mystic
nimble opaque placid prickly radiant robust rural serene shabby sincere sleek spotless stormy
sublime tepid tropical upbeat velvety vivid woolly zesty
"""

_NOUNS = """
abacus album anvil atlas badger bamboo barrel biscuit blender buckle cabbage cannon cello chapel
chisel cradle crayon cushion dagger decimal dentist dynamo easel ember envelope fabric faucet ferry
fossil funnel gadget gazelle goblet granite gravel harvest hinge hydrant igloo insect jigsaw kayak
kernel lagoon lever locust magpie mitten mosaic mustard napkin nectar nugget oatmeal oboe parcel
pendulum pigment piston prism quarry quilt racket ribcage saddle satchel scooter thimble trolley
turnip vault viaduct walkway yogurt zipper
"""

ADJECTIVES = tuple(_ADJECTIVES.split())
NOUNS = tuple(_NOUNS.split())

_SYLLABLES = """
b bl br c ch cl d dr f fl g gl gr h j k l m n p pl pr r s st t th tr v w z
a ai e ea ee i o oa oo ou u
b d g k l ld m n nd ng nt p r rd rk rt s sh sk st t th
"""

_ONSETS, _VOWELS, _CODAS = (tuple(line.split()) for line in _SYLLABLES.strip().splitlines())


@cache
def word_list(category: str) -> tuple[str, ...]:
    """Return the words of a category of wonderwords: `adjective`, `noun` or `verb`."""
    from wonderwords import RandomWord

    words = RandomWord().filter(include_categories=[category])
    return tuple(sorted({word for word in words if word and " " not in word}))


@cache
def all_words() -> tuple[str, ...]:
    """Return the words of all three categories."""
    return tuple(sorted({w for c in ("adjective", "noun", "verb") for w in word_list(c)}))


def below(rng: random.Random, count: int) -> int:
    """Return the same number as `rng.randrange(count)`, in a third of the time."""
    bits = count.bit_length()
    number = rng.getrandbits(bits)
    while number >= count:
        number = rng.getrandbits(bits)
    return number


def uniform(seed: int, count: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Return the first `count` values of `random.Random(seed).random()`; `seed` is below 2**64.

    Python and numpy share the generator and how it is seeded.
    """
    low, high = seed & 0xFFFFFFFF, seed >> 32
    return np.random.RandomState([low, high] if high else [low]).random_sample(count)


def _choice(rng: random.Random, words: Sequence[str]) -> str:
    return words[below(rng, len(words))]


def draw_short_key(rng: random.Random) -> str:
    """Return an adjective-noun key of the small lists, such as `misty-anvil`."""
    return f"{_choice(rng, ADJECTIVES)}-{_choice(rng, NOUNS)}"


def draw_key(rng: random.Random) -> str:
    """Return an adjective-noun key of RULER's lists."""
    return f"{_choice(rng, word_list('adjective'))}-{_choice(rng, word_list('noun'))}"


def draw_number(rng: random.Random) -> str:
    """Return a number of seven digits."""
    return str(1_000_000 + below(rng, 9_000_000))


def draw_uuid(rng: random.Random) -> str:
    """Return a random UUID (version 4)."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def coded_word(rng: random.Random, length: int, alphabet: str = string.ascii_lowercase) -> str:
    """Return random letters."""
    return "".join(rng.choices(alphabet, k=length))


DRAWS: dict[str, Callable[[random.Random], str]] = {
    "short_words": draw_short_key,
    "words": draw_key,
    "numbers": draw_number,
    "uuids": draw_uuid,
}
"""Kind of key or value → function that draws one."""


def distinct(draw: Callable[[], str], taken: set[str] | None = None) -> Iterator[str]:
    """Yield distinct draws that are not in `taken`; add them to it.

    Raises:
        ValueError: a thousand draws in a row are repeats.
    """
    seen = set() if taken is None else taken
    while True:
        word, num_repeats = draw(), 0
        while word in seen:
            num_repeats += 1
            if num_repeats == 1000:
                raise ValueError("there are no further distinct words to draw")
            word = draw()
        seen.add(word)
        yield word


def list_words(rng: random.Random, count: int) -> Iterator[str]:
    """Yield distinct words: RULER's in random order, then invented ones."""
    pool = all_words()
    yield from sampled(rng, pool, min(count, len(pool)))
    yield from islice(_invented_words(rng), max(0, count - len(pool)))


def mixed_words(rng: random.Random, count: int) -> list[str]:
    """Return distinct words in random order: RULER's, and as many invented ones as are missing."""
    pool = all_words()
    words = [*pool, *islice(_invented_words(rng), max(0, count - len(pool)))]
    return rng.sample(words, count)


def _invented_words(rng: random.Random) -> Iterator[str]:
    return distinct(lambda: _invented_word(rng), set(all_words()))


def sampled(rng: random.Random, pool: Sequence[str], count: int) -> Iterator[str]:
    """Yield the same items as `rng.sample(pool, count)`; draw a small sample on demand."""
    if count > 5 and len(pool) > 21 + 4 ** math.ceil(math.log(3 * count, 4)):
        yield from islice(distinct(lambda: _choice(rng, pool)), count)
    else:
        yield from rng.sample(pool, count)


def _invented_word(rng: random.Random) -> str:
    parts = (_ONSETS, _VOWELS, _CODAS) * 2
    return "".join(rng.choice(part) for part in parts)
