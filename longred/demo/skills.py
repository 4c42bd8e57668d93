"""Short practice exercises as text: dense key-value pairs, needles, repeated spans, brackets."""

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longred.demo import wording
from longred.evaluation.short.key_recall import QUESTIONS
from longred.evaluation.short.keys import draw_key, draw_keys, draw_value

# A practice document's exercise has to fit in front of the cut.
MIN_PRACTICE_TOKENS = 64
# Keys and English wordings, in a vocabulary made for source text.
LETTERS_PER_TOKEN = 1.65


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """A text and the character spans in it that can be known from what stands before them."""

    text: str
    answers: tuple[tuple[int, int], ...]


class _Writer:
    """Collects text and remembers which spans are answers."""

    def __init__(self) -> None:
        self.text = ""
        self.answers: list[tuple[int, int]] = []

    def write(self, text: str, *, answer: bool = False) -> None:
        if answer:
            self.answers.append((len(self.text), len(self.text) + len(text)))
        self.text += text

    def exercise(self) -> Exercise:
        return Exercise(text=self.text, answers=tuple(self.answers))


def seeded_random(name: str) -> random.Random:
    """A generator for one purpose, the same on every machine and Python version."""
    return random.Random(name)  # noqa: S311 - exercises are no secrets


def estimated_tokens(text: str) -> float:
    """Tokens of an exercise text for the demo tokenizer, rather too many than too few."""
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
    """Key-value lines, then the same keys asked in random order until about `length` tokens.

    `short_values` (1 to 3 digits) make room for more pairs.
    """
    del passages
    line = rng.choice(lines)
    num_digits = rng.choice((1, 2, 2, 3) if short_values else (4, 4, 4, 5, 6, 7))
    pair_tokens = 8 + num_digits
    num_pairs = rng.randint(2, max(2, min(12, length // (2 * pair_tokens))))
    pairs = {key: draw_value(rng, num_digits) for key in draw_keys(rng, num_pairs)}
    writer = _Writer()
    for key, value in pairs.items():
        writer.write(line.format(key=key, value=value))
    before, after = line.split("{value}")
    gap = " " * before.endswith(" ")
    before = before.rstrip(" ")
    num_questions = 0
    while num_questions == 0 or estimated_tokens(writer.text) < length - 1.5 * pair_tokens:
        key = rng.choice(list(pairs))
        writer.write(before.format(key=key))
        writer.write(gap + pairs[key] + after, answer=True)
        num_questions += 1
    return writer.exercise()


def recall_exercise(
    rng: random.Random,
    *,
    length: int,
    passages: Sequence[str] = (),
    short_values: bool = False,
    open_wording: bool = False,
) -> Exercise:
    """Pairs stated in one practised wording and asked in others, many to a text."""
    del passages
    words = _draw_wording(rng, open_wording)
    num_digits = rng.choice((1, 2, 2, 3) if short_values else (4, 4, 5, 6, 7, None))
    num_pairs = rng.randint(2, max(2, min(6, length // (30 if short_values else 45))))
    pairs = {key: draw_value(rng, num_digits) for key in draw_keys(rng, num_pairs)}
    separator = rng.choice((" ", "\n"))
    stated = [
        words.statement.format(noun=words.noun, key=key, value=value)
        for key, value in pairs.items()
    ]
    writer = _Writer()
    writer.write(separator.join(stated) + "\n")
    while not writer.answers or estimated_tokens(writer.text) < length * 0.8:
        question, end = rng.choice(QUESTIONS)
        if open_wording:
            question, end = words.question, words.end
        key = rng.choice(list(pairs))
        writer.write(question.format(noun=words.noun, key=key))
        writer.write(f" {pairs[key]}{end}", answer=True)
        writer.write(rng.choice((" ", "\n")) if end == "." else "")
    return writer.exercise()


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
    """One or more stated pairs hidden in text, one of them asked at the end.

    `num_distractors` other pairs stand in the text (0 to 3 when None and there is room). The
    haystack, a passage or in `noise_share` of the cases short noise sentences, fills up to `length`
    tokens. The only answer span is the value with the character that ends it.
    """
    words = _draw_wording(rng, open_wording)
    preamble = rng.choice(wording.PREAMBLES).format(noun=words.noun)
    if num_distractors is None:
        num_distractors = rng.randint(0, 3) if length >= 160 else 0
    num_pairs = 1 + num_distractors
    pairs = [(key, draw_value(rng)) for key in draw_keys(rng, num_pairs, held_out=held_out)]
    statements = [
        words.statement.format(noun=words.noun, key=key, value=value) for key, value in pairs
    ]
    key, value = rng.choice(pairs)
    asked = words.question.format(noun=words.noun, key=key)
    spent = estimated_tokens(" ".join([preamble, *statements, asked, value])) + 6
    room = max(0.0, length - spent) * (1.0 if rng.random() < 0.5 else rng.random())
    sentences, separator = _haystack(rng, room, passages, noise_share)
    for text in statements:
        sentences.insert(rng.randint(0, len(sentences)), text)
    writer = _Writer()
    if preamble:
        writer.write(preamble + "\n")
    writer.write(separator.join(sentences) + rng.choice(("\n", "\n", " ")) + asked)
    writer.write(f" {value}{words.end}", answer=True)
    return writer.exercise()


def repeat_exercise(rng: random.Random, *, length: int, passages: Sequence[str]) -> Exercise:
    """Spans of random strings, words or source text, each written twice or more."""
    writer = _Writer()
    while not writer.answers or estimated_tokens(writer.text) < length * 0.8:
        span = _random_span(rng, rng.randint(8, max(9, length // 5)), passages)
        separator = rng.choice(("\n", " ", "\n\n"))
        writer.write(span + separator)
        if rng.random() < 0.3:
            writer.write(_random_span(rng, rng.randint(4, 24), passages) + separator)
        # The first few characters cannot be known yet.
        given = min(len(span) // 2, rng.randint(3, 8))
        writer.write(span[:given])
        writer.write(span[given:] + separator, answer=True)
    return writer.exercise()


def bracket_exercise(rng: random.Random, *, length: int, passages: Sequence[str] = ()) -> Exercise:
    """Nested brackets with words between them, closed in the right order."""
    del passages
    closing = {"(": ")", "[": "]", "{": "}"}
    writer = _Writer()
    while not writer.answers or estimated_tokens(writer.text) < length * 0.8:
        stack: list[str] = []
        for _ in range(rng.randint(2, 7)):
            opening = rng.choice("([{")
            writer.write(rng.choice(("", "", draw_key(rng).replace(" ", "_"), ", ")) + opening)
            stack.append(closing[opening])
            if rng.random() < 0.25:
                writer.write(stack.pop(), answer=True)
        writer.write(rng.choice(("", "x", draw_value(rng))))
        writer.write("".join(reversed(stack)) + "\n", answer=True)
    return writer.exercise()


EXERCISES: dict[str, Callable[..., Exercise]] = {
    "dense": dense_exercise,
    "recall": recall_exercise,
    "needle": needle_exercise,
    "repeat": repeat_exercise,
    "bracket": bracket_exercise,
}
WORDED = ("recall", "needle")
# Open wordings among the worded exercises, where they are practised.
OPEN_SHARE = 0.6
# Shares of exercises in the practice part of the base model's own training mixture.
PRACTICE_MIX = {"dense": 0.15, "recall": 0.2, "needle": 0.4, "repeat": 0.2, "bracket": 0.05}


def draw_exercise(
    rng: random.Random, kind: str, *, length: int, passages: Sequence[str], open_share: float
) -> Exercise:
    """An exercise of a kind named in `EXERCISES`; `open_share` of the worded ones are open."""
    exercise = EXERCISES[kind]
    if kind in WORDED and rng.random() < open_share:
        return exercise(rng, length=length, passages=passages, open_wording=True)
    return exercise(rng, length=length, passages=passages)


def practice_document(seed: int, index: int, *, length: int, passages: Sequence[str]) -> str:
    """Practice text of at least about `length` tokens; a pure function of its arguments.

    Starts with one exercise that ends, answer included, inside the first `length` tokens; further
    dense exercises follow until the text is long enough to be cut. `passages` are texts of the
    training split that serve as haystacks. Raises ValueError when `length` is under 64.
    """
    if length < MIN_PRACTICE_TOKENS:
        raise ValueError(f"practice needs at least {MIN_PRACTICE_TOKENS} tokens, got {length}")
    rng = seeded_random(f"practice-{seed}-{index}-{length}")
    text = _fitting_exercise(rng, length, passages).text
    while len(text) < length * 2.6 * 1.3:
        text += "\n" * (not text.endswith("\n")) + "\n"
        text += dense_exercise(rng, length=min(length, 96)).text
    return text


def _fitting_exercise(rng: random.Random, length: int, passages: Sequence[str]) -> Exercise:
    """Draw until the first answer ends before the cut (behind BOS) by the tokens' estimate."""
    kinds, shares = list(PRACTICE_MIX), list(PRACTICE_MIX.values())
    while True:
        kind = rng.choices(kinds, weights=shares)[0]
        exercise = draw_exercise(
            rng, kind, length=length - 2, passages=passages, open_share=OPEN_SHARE
        )
        if estimated_tokens(exercise.text[: exercise.answers[0][1]]) < length - 1:
            return exercise


def _draw_wording(rng: random.Random, open_wording: bool) -> wording.Wording:
    if open_wording:
        return wording.draw_open_wording(rng)
    return wording.draw_wording(rng)


def _haystack(
    rng: random.Random, room: float, passages: Sequence[str], noise_share: float
) -> tuple[list[str], str]:
    """Sentences or lines of about `room` tokens, and what joins them."""
    if not passages or rng.random() < noise_share:
        few = rng.sample(wording.NOISE, rng.randint(3, len(wording.NOISE)))
        noise: list[str] = []
        used = 0.0
        while (used := used + estimated_tokens(few[len(noise) % len(few)]) + 0.5) < room:
            noise.append(few[len(noise) % len(few)])
        return noise, rng.choice((" ", " ", "\n"))
    lines = _passage_lines(rng, room, passages)
    if rng.random() < 0.3:
        flat = " ".join(" ".join(lines).split())
        return flat.replace(". ", ".\0").split("\0"), " "
    return lines, "\n"


def _passage_lines(rng: random.Random, room: float, passages: Sequence[str]) -> list[str]:
    passage = rng.choice(passages)
    start = passage.find("\n", rng.randrange(len(passage))) + 1
    lines: list[str] = []
    used = 0.0
    for line in passage[start : start + int(4 * room) + 200].split("\n"):
        used += estimated_tokens(line) + 1
        if used > room:
            break
        lines.append(line)
    return lines


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
