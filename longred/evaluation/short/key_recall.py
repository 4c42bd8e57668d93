"""Key recall: a few stated pairs and a question, with keys and values that no training saw."""

import random
from collections.abc import Iterator
from itertools import count
from typing import Any

from longred.evaluation.ruler.fitting import COMPACT_BUDGET
from longred.evaluation.short.keys import draw_keys, draw_value
from longred.evaluation.short.passages import Passages

NUM_PAIRS = 4

NOUNS = (
    "code",
    "secret number",
    "ticket number",
    "PIN",
    "id",
    "constant",
    "serial number",
    "locker number",
    "access code",
    "hidden number",
    "pass code",
    "batch number",
    "room number",
    "phone number",
    "badge number",
    "reading",
    "total",
    "account number",
    "lucky number",
    "winning ticket",
)

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

# Each ends right before the value; the terminator tells how the answer ends.
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


def key_recall(passages: Passages, seed: int) -> Iterator[dict[str, Any]]:
    """Yield prompts that end right before a number, and the number."""
    for index in count():
        rng = random.Random(f"{seed}-key_recall-{index}")  # noqa: S311
        for num_pairs in range(NUM_PAIRS, 0, -1):
            prompt, answer = key_recall_prompt(rng, num_pairs=num_pairs, held_out=True)
            if passages.fits(prompt, COMPACT_BUDGET):
                yield {
                    "source": f"{num_pairs} pairs",
                    "input": prompt,
                    "outputs": [answer],
                    "max_new_tokens": COMPACT_BUDGET,
                }
                break
        else:
            return


def key_recall_prompt(
    rng: random.Random, *, num_pairs: int = 4, held_out: bool = True
) -> tuple[str, str]:
    """A few stated pairs and a question, in one of the practised wordings.

    Returns the prompt, which ends right before the answer, and the answer's digits without the
    space before them.
    """
    noun = rng.choice(NOUNS)
    statement = rng.choice(STATEMENTS)
    question, _ = rng.choice(QUESTIONS)
    keys = draw_keys(rng, num_pairs, held_out=held_out)
    pairs = [(key, draw_value(rng)) for key in keys]
    lines = [statement.format(noun=noun, key=key, value=value) for key, value in pairs]
    key, value = rng.choice(pairs)
    return "\n".join([*lines, question.format(noun=noun, key=key)]), value
