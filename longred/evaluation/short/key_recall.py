"""Key recall: a few stated key-value pairs and a question for one of the values.

The demo model practises the same wordings. Words of keys are split by hash, so that no key of an
evaluation is ever practised.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from longred.evaluation.counting import count_tokens
from longred.evaluation.ruler.fitting import COMPACT_BUDGET
from longred.evaluation.short.passages import Passages

NUM_PAIRS = 4
HELD_OUT_FRACTION = 0.2
MIN_DIGITS, MAX_DIGITS = 4, 7

_NOUNS_TEXT = (
    "code, secret number, ticket number, PIN, id, constant, serial number, locker number, "
    "access code, hidden number, pass code, batch number, room number, phone number, "
    "badge number, reading, total, account number, lucky number, winning ticket"
)
NOUNS = tuple(_NOUNS_TEXT.split(", "))
"""Words for a value."""

STATEMENTS = (
    "The {noun} for {key} is {value}.",
    "The {noun} of {key} is {value}.",
    "The {noun} for {key} is: {value}.",
    "Remember that the {noun} for {key} is: {value}.",
    "{key} has the {noun} {value}.",
    "Note: {key} = {value}.",
    "{noun}[{key}] = {value}.",
    "For {key}, use the {noun} {value}.",
    "{key} was given {value} as its {noun}.",
    "# {noun} for {key}: {value}.",
    "{key} -> {value}.",
    "It is known that the {noun} belonging to {key} equals {value}.",
    "Here is a {noun}: {key} gets {value}.",
    "Do not forget: {noun} {key} is {value}.",
    "Among the {noun}s, the one for {key} is: {value}.",
    "Whoever asks about {key} will hear the {noun} {value}.",
    "As for {key}, its {noun} happens to be {value}.",
    "{key} can be opened with the {noun} {value}.",
)

QUESTIONS = (
    ("What is the {noun} for {key}? The {noun} for {key} is", "."),
    ("Question: which {noun} belongs to {key}?\nAnswer:", "\n"),
    ("The {noun} of {key} is", "."),
    ("{noun}[{key}] =", "\n"),
    ("Which {noun} was given to {key}? It is", "."),
    ("Recall the {noun} for {key}. The {noun} for {key} stated above is", "."),
    ("As the text says, the {noun} for {key} is", "."),
    ("Q: {key}?\nA:", "\n"),
    ("{key} ->", "\n"),
    ("What was the {noun} of {key} in the passage? The {noun} of {key} in the passage was", "."),
    ("Tell me the {noun} for {key}:", "\n"),
    ("According to the lines above, {key} has the {noun}", "."),
    ("Which {noun} goes with {key}? The {noun} that goes with {key} in this text is", "."),
    ("# {noun} for {key}:", "\n"),
    ("Do you recall {key}? Its {noun}, as was written before, is", "."),
    ("Now the {noun} of {key} that was hidden in the lines above:", "\n"),
)
"""Each ends right before the value and comes with the character that ends the answer."""

_KEY_ADJECTIVES_TEXT = """
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

_KEY_NOUNS_TEXT = """
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

KEY_ADJECTIVES = _KEY_ADJECTIVES_TEXT.split()
KEY_NOUNS = _KEY_NOUNS_TEXT.split()
_ONSETS = _ONSETS_TEXT.split()
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "oo"]
_CODAS = ["", "", "", "l", "m", "n", "nd", "r", "rk", "s", "t", "x"]


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Templates that state pairs and ask for a value.

    Attributes:
        noun: word for a value.
        statement: states a pair.
        question: ends right before the value.
        end: character that ends the answer.
    """

    noun: str
    statement: str
    question: str
    end: str


def draw_wording(rng: random.Random) -> Wording:
    """Draw a combination of the fixed templates."""
    noun = rng.choice(NOUNS)
    statement = rng.choice(STATEMENTS)
    question, end = rng.choice(QUESTIONS)
    return Wording(noun=noun, statement=statement, question=question, end=end)


def key_recall(passages: Passages, seed: int) -> Iterator[dict[str, Any]]:
    """Yield prompts that end right before a number, and the number."""
    for index in count():
        rng = random.Random(f"{seed}-key_recall-{index}")  # noqa: S311
        for num_pairs in range(NUM_PAIRS, 0, -1):
            prompt, answer = key_recall_prompt(rng, num_pairs=num_pairs)
            if count_tokens(passages.tokenizer, prompt) + COMPACT_BUDGET <= passages.window:
                yield {
                    "source": f"{num_pairs} pairs",
                    "input": prompt,
                    "outputs": [answer],
                    "max_new_tokens": COMPACT_BUDGET,
                }
                break
        else:
            return


def key_recall_prompt(rng: random.Random, *, num_pairs: int = NUM_PAIRS) -> tuple[str, str]:
    """Draw a few stated pairs with held-out keys, and a question.

    Returns:
        The prompt, which ends right before the answer, and the answer's digits without the space
        before them.
    """
    words = draw_wording(rng)
    keys = draw_keys(rng, num_pairs, held_out=True)
    pairs = [(key, draw_value(rng)) for key in keys]
    lines = [words.statement.format(noun=words.noun, key=key, value=value) for key, value in pairs]
    key, value = rng.choice(pairs)
    return "\n".join([*lines, words.question.format(noun=words.noun, key=key)]), value


def is_held_out_word(word: str) -> bool:
    """Return whether only evaluation may use a word in keys; depends on the word alone."""
    digest = hashlib.sha256(f"key-word\0{word}".encode()).hexdigest()
    return int(digest[:16], 16) / 2**64 < HELD_OUT_FRACTION


def draw_key(rng: random.Random, *, held_out: bool = False) -> str:
    """Draw a key of one or two words, joined by a space, hyphen or underscore.

    Either all words of the key are held-out words, or none is.
    """
    form = rng.random()
    if form < 0.2:
        return _draw_word(rng, KEY_NOUNS, held_out)
    if form < 0.4:
        return _draw_word(rng, None, held_out)
    first = _draw_word(rng, KEY_ADJECTIVES, held_out)
    second = _draw_word(rng, KEY_NOUNS if form < 0.8 else None, held_out)
    separator = rng.choice(("-", "-", "-", " ", " ", "_"))
    return f"{first}{separator}{second}"


def _draw_word(rng: random.Random, words: Sequence[str] | None, held_out: bool) -> str:
    """Draw one of `words`, or invent a word if None."""
    while True:
        if words is None:
            parts = (_ONSETS, _VOWELS, _CODAS) * rng.randint(2, 3)
            word = "".join(rng.choice(part) for part in parts)
        else:
            word = rng.choice(words)
        if is_held_out_word(word) == held_out:
            return word


def draw_keys(rng: random.Random, num_keys: int, *, held_out: bool = False) -> list[str]:
    """Draw distinct keys."""
    keys: dict[str, None] = {}
    while len(keys) < num_keys:
        keys[draw_key(rng, held_out=held_out)] = None
    return list(keys)


def draw_value(rng: random.Random, num_digits: int | None = None) -> str:
    """Draw a number of 4 to 7 digits (or `num_digits`) without a leading zero."""
    if num_digits is None:
        num_digits = rng.randint(MIN_DIGITS, MAX_DIGITS)
    return str(rng.randrange(10 ** (num_digits - 1), 10**num_digits))
