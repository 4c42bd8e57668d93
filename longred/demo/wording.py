"""Wordings of the retrieval exercises: fixed templates, and a small grammar for open wordings."""

import random

from longred.evaluation.short.key_recall import NOUNS, Wording

COMPACT = (
    "{key}: {value}\n",
    "{key} = {value}\n",
    "{key} -> {value}\n",
    "{key} is {value}.\n",
    "{key} has {value}.\n",
    "({key}, {value})\n",
    "[{key}] = {value}\n",
    "'{key}': {value},\n",
    "{key}:{value}\n",
    "{key}={value}\n",
    "{key}:{value} ",
    "{key}-{value};",
    "<{key}>{value}\n",
)
"""Lines that state a pair and, cut before the value, ask for it again."""

PREAMBLES = (
    "",
    "",
    "Read this and keep each {noun} in mind.",
    "There is a {noun} somewhere below. You will be asked for it at the end.",
    "The next lines hide a {noun}. Try to remember it, a question follows.",
    "Pay attention to any {noun} in this passage.",
    "Here is a long passage with one {noun} in it. Learn it by heart.",
)

NOISE = (
    "The river is wide.",
    "We walk along the road.",
    "Birds sing in the morning.",
    "The door is open.",
    "It rains in the north.",
    "Some people like tea.",
    "The train leaves at noon.",
    "Snow falls on the hill.",
    "A dog sleeps under the table.",
    "The wind turns slowly.",
    "They talk about the weather.",
    "The bread is warm.",
    "Nobody knows the way.",
    "Leaves drop from the trees.",
    "The old clock stops again.",
    "Children play near the water.",
    "She reads a letter.",
    "He looks out of the window.",
    "The market is full today.",
    "This is how the story goes.",
    "The night is long and quiet.",
    "Somebody left the light on.",
    "Up the stairs and down again.",
    "The milk is cold.",
)


_ADJECTIVES = ("secret", "hidden", "rare", "main", "old", "new", "true", "private", "curious")
_LEADS = ("The", "The", "Some of the", "One among the", "Any of the", "The only", "This", "Our")
_RELATIONS = ("for", "for", "of", "belonging to", "given to", "that goes with", "kept by")
_VERBS = ("is", "is", "is:", "was", "equals", "reads", "is just")
_QUESTIONS_TEXT = (
    "What is the, What is the, Which is the, What was the, Can you tell the, Please name the, "
    "Do you remember the"
)
_PARTICIPLES_TEXT = (
    "stated given written named shown listed quoted noted found hidden seen recorded"
)
_QUALITIES_TEXT = "above whole previous long given old present same short other"
_THINGS_TEXT = "passage lines page story message notes paragraph document list letter book"

_QUESTION_STARTS = _QUESTIONS_TEXT.split(", ")
_PARTICIPLES = _PARTICIPLES_TEXT.split()
_PREPOSITIONS = ("in", "within", "inside", "by", "on", "throughout")
_QUALITIES = _QUALITIES_TEXT.split()
_THINGS = _THINGS_TEXT.split()


def draw_open_wording(rng: random.Random) -> Wording:
    """Draw sentences built from parts, with up to five filler words between key and value."""
    noun = rng.choice(NOUNS)
    if rng.random() < 0.5:
        noun = f"{rng.choice(_ADJECTIVES)} {noun}"
    lead = rng.choice(_LEADS)
    plural = "s" if lead.endswith(("of the", "among the")) else ""
    relation = rng.choice(_RELATIONS)
    filler = "" if rng.random() < 0.6 else _filler(rng)
    statement = f"{lead} {noun}{plural} {relation} {{key}}{filler} {rng.choice(_VERBS)} {{value}}."
    filler = "" if rng.random() < 0.25 else _filler(rng)
    asked = f"{noun} {rng.choice(_RELATIONS)} {{key}}{filler}"
    question = f"The {asked} {rng.choice(('is', 'is', 'was'))}"
    if rng.random() < 0.7:
        question = f"{rng.choice(_QUESTION_STARTS)} {asked}? {question}"
    return Wording(noun=noun, statement=statement, question=question, end=".")


def _filler(rng: random.Random) -> str:
    """Draw words such as ` stated in the above passage`."""
    words = (
        rng.choice(_PARTICIPLES),
        rng.choice(_PREPOSITIONS),
        "the",
        rng.choice(("", *_QUALITIES)),
        rng.choice(_THINGS),
    )
    return "".join(f" {word}" for word in words if word)
