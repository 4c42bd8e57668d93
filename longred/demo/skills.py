"""Exercises as text: dense key-value pairs, recall, needles, repeated spans and brackets."""

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from longred.demo import wording
from longred.evaluation.short.key_recall import (
    QUESTIONS,
    draw_key,
    draw_keys,
    draw_value,
    draw_wording,
)

# The exercise of a practice document must fit before the cut.
MIN_PRACTICE_TOKENS = 64
# Of keys and English wordings, in a vocabulary trained on source text.
LETTERS_PER_TOKEN = 1.65


@dataclass
class Exercise:
    """A text with answers, which follow from the text before them.

    Attributes:
        text: the text.
        answers: start and end offset of each answer.
    """

    text: str = ""
    answers: list[tuple[int, int]] = field(default_factory=list)

    def write(self, text: str, *, answer: bool = False) -> None:
        """Append text, which may be an answer as a whole."""
        if answer:
            self.answers.append((len(self.text), len(self.text) + len(text)))
        self.text += text

    def write_dense(self, rng: random.Random, *, length: int, min_characters: float) -> None:
        """Append dense exercises until the text is long enough."""
        while len(self.text) < min_characters:
            self.write("\n" * (not self.text.endswith("\n")) + "\n")
            more = dense_exercise(rng, length=min(length, 96))
            offset = len(self.text)
            self.answers += [(offset + start, offset + end) for start, end in more.answers]
            self.text += more.text


def seeded_random(name: str) -> random.Random:
    """Return a generator that is the same on every machine and Python version."""
    return random.Random(name)  # noqa: S311 - exercises are no secrets


def estimated_tokens(text: str) -> float:
    """Estimate the tokens of an exercise with the demo tokenizer; tends to overestimate."""
    num_letters = sum(character.isalpha() for character in text)
    num_spaces = text.count(" ")
    return len(text) - num_letters - num_spaces + num_letters / LETTERS_PER_TOKEN


def dense_exercise(
    rng: random.Random,
    *,
    length: int,
    passages: Sequence[str] = (),
    lines: Sequence[str] = wording.COMPACT,
    short_values: bool = False,
) -> Exercise:
    """Write key-value lines, then the same keys in random order until about `length` tokens.

    `short_values` (1 to 3 digits) leave room for more pairs.
    """
    line = rng.choice(lines)
    num_digits = rng.choice((1, 2, 2, 3) if short_values else (4, 4, 4, 5, 6, 7))
    pair_tokens = 8 + num_digits
    num_pairs = rng.randint(2, max(2, min(12, length // (2 * pair_tokens))))
    pairs = {key: draw_value(rng, num_digits) for key in draw_keys(rng, num_pairs)}
    exercise = Exercise("".join(line.format(key=key, value=value) for key, value in pairs.items()))
    before, after = line.split("{value}")
    gap = " " * before.endswith(" ")
    before = before.rstrip(" ")
    while not exercise.answers or estimated_tokens(exercise.text) < length - 1.5 * pair_tokens:
        key = rng.choice(list(pairs))
        exercise.write(before.format(key=key))
        exercise.write(gap + pairs[key] + after, answer=True)
    return exercise


def recall_exercise(
    rng: random.Random,
    *,
    length: int,
    passages: Sequence[str] = (),
    short_values: bool = False,
    open_wording: bool = False,
) -> Exercise:
    """State pairs in one fixed wording, then ask for them many times in others.

    With `open_wording`, both the statements and the questions have one open wording.
    """
    words = wording.draw_open_wording(rng) if open_wording else draw_wording(rng)
    num_digits = rng.choice((1, 2, 2, 3) if short_values else (4, 4, 5, 6, 7, None))
    num_pairs = rng.randint(2, max(2, min(6, length // (30 if short_values else 45))))
    pairs = {key: draw_value(rng, num_digits) for key in draw_keys(rng, num_pairs)}
    separator = rng.choice((" ", "\n"))
    statements = [
        words.statement.format(noun=words.noun, key=key, value=value)
        for key, value in pairs.items()
    ]
    exercise = Exercise(separator.join(statements) + "\n")
    while not exercise.answers or estimated_tokens(exercise.text) < length * 0.8:
        question, end = rng.choice(QUESTIONS)
        if open_wording:
            question, end = words.question, words.end
        key = rng.choice(list(pairs))
        exercise.write(question.format(noun=words.noun, key=key))
        exercise.write(f" {pairs[key]}{end}", answer=True)
        exercise.write(rng.choice((" ", "\n")) if end == "." else "")
    return exercise


def needle_exercise(
    rng: random.Random,
    *,
    length: int,
    passages: Sequence[str],
    held_out: bool = False,
    num_distractors: int | None = None,
    open_wording: bool = False,
    noise_share: float = 0.35,
) -> Exercise:
    """Hide one or more stated pairs in text and ask for one of them at the end.

    The only answer is the value with the character that ends it.

    Args:
        rng: random generator.
        length: tokens that the text may take.
        passages: texts to hide pairs in.
        held_out: use keys that only evaluation may use.
        num_distractors: number of other pairs; random if None.
        open_wording: use an open wording instead of a fixed one.
        noise_share: probability of short noise sentences instead of a passage.
    """
    words = wording.draw_open_wording(rng) if open_wording else draw_wording(rng)
    preamble = rng.choice(wording.PREAMBLES).format(noun=words.noun)
    if num_distractors is None:
        num_distractors = rng.randint(0, 3) if length >= 160 else 0
    keys = draw_keys(rng, 1 + num_distractors, held_out=held_out)
    pairs = [(key, draw_value(rng)) for key in keys]
    statements = [
        words.statement.format(noun=words.noun, key=key, value=value) for key, value in pairs
    ]
    key, value = rng.choice(pairs)
    question = words.question.format(noun=words.noun, key=key)
    spent = estimated_tokens(" ".join([preamble, *statements, question, value])) + 6
    room = max(0.0, length - spent) * (1.0 if rng.random() < 0.5 else rng.random())
    sentences, separator = _haystack(rng, room, passages, noise_share)
    for text in statements:
        sentences.insert(rng.randint(0, len(sentences)), text)
    exercise = Exercise(preamble + "\n" if preamble else "")
    exercise.write(separator.join(sentences) + rng.choice(("\n", "\n", " ")) + question)
    exercise.write(f" {value}{words.end}", answer=True)
    return exercise


def repeat_exercise(rng: random.Random, *, length: int, passages: Sequence[str]) -> Exercise:
    """Write spans of random characters, keys or source text twice each."""
    exercise = Exercise()
    while not exercise.answers or estimated_tokens(exercise.text) < length * 0.8:
        span = _random_span(rng, rng.randint(8, max(9, length // 5)), passages)
        separator = rng.choice(("\n", " ", "\n\n"))
        exercise.write(span + separator)
        if rng.random() < 0.3:
            exercise.write(_random_span(rng, rng.randint(4, 24), passages) + separator)
        # The first few characters cannot be predicted.
        given = min(len(span) // 2, rng.randint(3, 8))
        exercise.write(span[:given])
        exercise.write(span[given:] + separator, answer=True)
    return exercise


def bracket_exercise(rng: random.Random, *, length: int, passages: Sequence[str] = ()) -> Exercise:
    """Open nested brackets with words between them and close them in the right order."""
    closing = {"(": ")", "[": "]", "{": "}"}
    exercise = Exercise()
    while not exercise.answers or estimated_tokens(exercise.text) < length * 0.8:
        stack: list[str] = []
        for _ in range(rng.randint(2, 7)):
            opening = rng.choice("([{")
            exercise.write(rng.choice(("", "", draw_key(rng).replace(" ", "_"), ", ")) + opening)
            stack.append(closing[opening])
            if rng.random() < 0.25:
                exercise.write(stack.pop(), answer=True)
        exercise.write(rng.choice(("", "x", draw_value(rng))))
        exercise.write("".join(reversed(stack)) + "\n", answer=True)
    return exercise


EXERCISES: dict[str, Callable[..., Exercise]] = {
    "dense": dense_exercise,
    "recall": recall_exercise,
    "needle": needle_exercise,
    "repeat": repeat_exercise,
    "bracket": bracket_exercise,
}
WORDED = ("recall", "needle")
# Share of open wordings among the worded exercises, once they are practised.
OPEN_SHARE = 0.6
# Shares of exercises in the practice part of the base model's training mixture.
PRACTICE_MIX = {"dense": 0.15, "recall": 0.2, "needle": 0.4, "repeat": 0.2, "bracket": 0.05}


def draw_exercise(
    rng: random.Random, kind: str, *, length: int, passages: Sequence[str], open_share: float
) -> Exercise:
    """Draw an exercise of a kind in `EXERCISES`; `open_share` of the worded ones are open."""
    options = {}
    if kind in WORDED and rng.random() < open_share:
        options["open_wording"] = True
    return EXERCISES[kind](rng, length=length, passages=passages, **options)


def practice_document(seed: int, index: int, *, length: int, passages: Sequence[str]) -> str:
    """Return practice text of at least about `length` tokens; depends on its arguments alone.

    Its first exercise has an answer within the first `length` tokens. Dense exercises follow until
    the text is long enough to be cut.

    Args:
        seed: any integer.
        index: number of the document.
        length: tokens.
        passages: texts of the training split, used as haystacks.

    Raises:
        ValueError: `length` is below 64.
    """
    if length < MIN_PRACTICE_TOKENS:
        raise ValueError(f"practice needs at least {MIN_PRACTICE_TOKENS} tokens, got {length}")
    rng = seeded_random(f"practice-{seed}-{index}-{length}")
    exercise = _fitting_exercise(rng, length, passages)
    exercise.write_dense(rng, length=length, min_characters=length * 2.6 * 1.3)
    return exercise.text


def _fitting_exercise(rng: random.Random, length: int, passages: Sequence[str]) -> Exercise:
    """Draw until the first answer is estimated to end before the cut, after BOS."""
    kinds, shares = list(PRACTICE_MIX), list(PRACTICE_MIX.values())
    while True:
        kind = rng.choices(kinds, weights=shares)[0]
        exercise = draw_exercise(
            rng, kind, length=length - 2, passages=passages, open_share=OPEN_SHARE
        )
        if estimated_tokens(exercise.text[: exercise.answers[0][1]]) < length - 1:
            return exercise


def _haystack(
    rng: random.Random, room: float, passages: Sequence[str], noise_share: float
) -> tuple[list[str], str]:
    """Draw sentences or lines of about `room` tokens, and their separator."""
    if not passages or rng.random() < noise_share:
        few = rng.sample(wording.NOISE, rng.randint(3, len(wording.NOISE)))
        noise: list[str] = []
        used = 0.0
        while (used := used + estimated_tokens(few[len(noise) % len(few)]) + 0.5) < room:
            noise.append(few[len(noise) % len(few)])
        return noise, rng.choice((" ", " ", "\n"))
    passage = rng.choice(passages)
    start = passage.find("\n", rng.randrange(len(passage))) + 1
    lines: list[str] = []
    used = 0.0
    for line in passage[start : start + int(4 * room) + 200].split("\n"):
        used += estimated_tokens(line) + 1
        if used > room:
            break
        lines.append(line)
    if rng.random() < 0.3:
        flat = " ".join(" ".join(lines).split())
        return flat.replace(". ", ".\0").split("\0"), " "
    return lines, "\n"


def _random_span(rng: random.Random, num_tokens: int, passages: Sequence[str]) -> str:
    kind = rng.random()
    if kind < 0.4:
        alphabet = rng.choice((string.ascii_letters, string.printable[:94], string.digits))
        return "".join(rng.choice(alphabet) for _ in range(num_tokens))
    if kind < 0.7 or not passages:
        return " ".join(draw_key(rng) for _ in range(1 + num_tokens // 5))
    passage = rng.choice(passages)
    start = rng.randrange(max(1, len(passage) - 2 * num_tokens))
    return passage[start : start + 2 * num_tokens]
