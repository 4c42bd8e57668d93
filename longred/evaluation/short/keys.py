"""Keys and values to recall; keys are split by hash, so that no practice has those of a test."""

import hashlib
import random

HELD_OUT_FRACTION = 0.2
MIN_DIGITS, MAX_DIGITS = 4, 7

_ADJECTIVES_TEXT = """
able ancient angry awake bitter blue bold brave brief bright broad broken calm careful cheap
clean clear clever cold cool costly crisp curious curly damp dark dear deep dense dim dizzy
double dry dull dusty eager early easy empty equal exact faint fair famous fancy fast fat fierce
final fine firm flat fluffy fond frail free fresh friendly frosty full funny fuzzy gentle giant
glad golden grand gray great greedy green happy hard harsh hasty heavy hidden high hollow honest
hot huge humble hungry icy idle jolly keen kind large late lazy lean light little lively lonely
long loud low loyal lucky mad merry mild modern narrow neat new nice noble noisy odd old orange
pale patient plain polite poor proud pure purple quick quiet rapid rare ready red rich ripe
rough round royal rusty sad safe salty scarce shallow sharp shiny short shy silent silly silver
simple sleepy slim slow small smart smooth soft solid sour spare spicy square stale steady steep
stiff still strange strict strong sturdy sudden sunny sweet swift tall tame tender thick thin
tidy tight tiny tired tough true ugly upper urgent useful vague vast warm weak weary wet white
whole wide wild wise wooden yellow young zealous
"""

_NOUNS_TEXT = """
acorn actor airport almond anchor ant apple apron arrow artist aunt autumn badge baker balloon
banana banjo barn basin basket beach bean bear beaver bell bench berry bicycle bird blanket boat
bonnet bottle boulder bowl branch bread brick bridge broom brush bucket butter button cabin
cactus camel camera candle canoe canyon captain carpet carrot castle cave cellar cherry chimney
circle circus cliff clock cloud clover coach coast cobra comet copper coral cottage cotton cow
crab crane crater cricket crown crystal curtain daisy dancer deer desert diamond doctor dolphin
donkey dragon drum duck eagle elbow elephant engine falcon farmer feather fence fern fiddle
field finger flame flower flute forest fountain fox frog galaxy garden gate ghost giraffe
glacier glove goat goose grape guitar hammer harbor harp hat hawk hedge helmet heron hill honey
horse hotel island ivory jacket jaguar jewel judge jungle kettle kitchen kite kitten ladder lake
lamp lantern lemon leopard letter lighthouse lily lion lizard lobster magnet mango maple marble
market meadow melon mirror monkey moon moose mountain mouse mushroom needle nest noodle nurse
oak ocean olive onion orchard orchid otter owl oyster paddle palace panda paper parrot peach
pear pebble pelican pencil penguin pepper piano pigeon pillow pilot pine pirate planet plum
pocket pond pony poppy potato prince pumpkin puppet rabbit radio raven ribbon river robin rocket
rose sailor salmon scarf school shadow shark sheep shell shovel signal singer spider spoon
squirrel stable statue stone storm stream summer sunset swan table teacher temple thunder tiger
timber tomato tower train tree trumpet tulip tunnel turtle umbrella uncle valley velvet village
violin volcano wagon walnut walrus whale wheel willow window winter wolf wrench yacht zebra
"""

_ONSETS_TEXT = "b br c ch d dr f fl g gl h j k kl l m n p pl qu r s sh st t th tr v w y z"

_ADJECTIVES = _ADJECTIVES_TEXT.split()
_NOUNS = _NOUNS_TEXT.split()
_ONSETS = _ONSETS_TEXT.split()
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "oo"]
_CODAS = ["", "", "", "l", "m", "n", "nd", "r", "rk", "s", "t", "x"]


def is_held_out_word(word: str) -> bool:
    """True for the words that only evaluation may use in keys; a pure function of the word."""
    digest = hashlib.sha256(f"key-word\0{word}".encode()).hexdigest()
    return int(digest[:16], 16) / 2**64 < HELD_OUT_FRACTION


def draw_key(rng: random.Random, *, held_out: bool = False) -> str:
    """Draw a key of one or two words (spaced, hyphenated or joined by an underscore).

    All words of the key are held-out words, or all are training words, as `held_out` says.
    """
    form = rng.random()
    if form < 0.2:
        return _draw(rng, _NOUNS, held_out)
    if form < 0.4:
        return _invented_word(rng, held_out)
    first = _draw(rng, _ADJECTIVES, held_out)
    second = _draw(rng, _NOUNS, held_out) if form < 0.8 else _invented_word(rng, held_out)
    separator = rng.choice(("-", "-", "-", " ", " ", "_"))
    return f"{first}{separator}{second}"


def draw_keys(rng: random.Random, count: int, *, held_out: bool = False) -> list[str]:
    """Draw `count` distinct keys."""
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[draw_key(rng, held_out=held_out)] = None
    return list(keys)


def draw_value(rng: random.Random, num_digits: int | None = None) -> str:
    """A number of 4 to 7 digits (or `num_digits`) without a leading zero."""
    count = rng.randint(MIN_DIGITS, MAX_DIGITS) if num_digits is None else num_digits
    return str(rng.randrange(10 ** (count - 1), 10**count))


def _draw(rng: random.Random, words: list[str], held_out: bool) -> str:
    while True:
        word = rng.choice(words)
        if is_held_out_word(word) == held_out:
            return word


def _invented_word(rng: random.Random, held_out: bool) -> str:
    while True:
        syllables = (
            rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
            for _ in range(rng.randint(2, 3))
        )
        word = "".join(syllables)
        if is_held_out_word(word) == held_out:
            return word
