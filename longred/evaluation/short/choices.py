"""Multiple-choice tasks cut from held-out text: cloze, continuation and brackets.

All choices of a sample take the same number of tokens.
"""

import keyword
import random
import re
from collections.abc import Iterable, Iterator
from itertools import count, islice
from typing import Any

from longred.evaluation.short.passages import Context, Passages, Text

NUM_CHOICES = 4
CONTINUATION_TOKENS, NUM_CONTINUATION_TRIES = 24, 40
CLOSING = {"(": ")", "[": "]", "{": "}"}
BRACKETS = list(CLOSING.values())

_KEYWORD = "|".join(keyword.kwlist)
_WORD = re.compile(rf"\b(?!(?:{_KEYWORD})\b)[A-Za-z_][A-Za-z0-9_]{{3,}}\b")
_LINE = re.compile(r"(?<=\S)\n(?=[ \t]*\S)")
_INDENT = re.compile(r"\n[ \t]*")


def cloze(passages: Passages, seed: int) -> Iterator[dict[str, Any]]:
    """Yield samples that ask for the next word, which has occurred in the passage before.

    The wrong answers are other words of the passage.
    """
    rng = random.Random(f"{seed}-cloze")  # noqa: S311
    sites = passages.matches(_WORD)
    rng.shuffle(sites)
    for text, place in sites:
        start = text.passage_start(place, passages.context_tokens(rng))
        before = text.text[start:place]
        space = " " if before.endswith(" ") else ""
        before = before.removesuffix(space)
        if not before or before[-1].isspace():
            continue
        answer = next(_WORD.finditer(text.text, place))[0]
        seen = set(_WORD.findall(before))
        if answer in seen:
            others = _other_words(rng, seen, answer, space)
            yield from _sample(rng, Context(passages, before), text, space + answer, others)


def _other_words(rng: random.Random, seen: set[str], answer: str, space: str) -> Iterator[str]:
    others = sorted(word for word in seen if word.lower() != answer.lower())
    rng.shuffle(others)
    yield from (space + word for word in others)


def continuation(passages: Passages, seed: int) -> Iterator[dict[str, Any]]:
    """Yield samples that ask for the lines after a passage.

    The wrong answers are lines of other documents, of the same indentation where possible.
    """
    rng = random.Random(f"{seed}-continuation")  # noqa: S311
    sites = passages.matches(_LINE)
    order = sites.copy()
    rng.shuffle(order)
    num_tokens = min(CONTINUATION_TOKENS, passages.window // 4)
    for text, place in order:
        start = text.passage_start(place, passages.context_tokens(rng) - num_tokens)
        before, answer = text.text[start:place], text.after(place, num_tokens)
        if before.strip() and answer != text.text[place:]:
            others = _other_lines(rng, text, sites, answer, num_tokens)
            yield from _sample(rng, Context(passages, before), text, answer, others)


def _other_lines(
    rng: random.Random, text: Text, sites: list[tuple[Text, int]], answer: str, num_tokens: int
) -> Iterator[str]:
    found: list[str] = []
    for _ in range(NUM_CONTINUATION_TRIES):
        other, place = rng.choice(sites)
        candidate = other.after(place, num_tokens)
        if other is not text and candidate != answer and candidate not in found:
            found.append(candidate)
    yield from sorted(found, key=lambda candidate: _indent(candidate) != _indent(answer))


def _indent(text: str) -> str | None:
    match = _INDENT.match(text)
    return match[0] if match else None


def _sample(
    rng: random.Random, context: Context, text: Text, answer: str, others: Iterable[str]
) -> Iterator[dict[str, Any]]:
    """Yield the sample, unless the answer or too few of the others fit.

    `others` is a generator: it draws from `rng` only if the answer fits.
    """
    size = context.size_of(answer)
    if size is None:
        return
    same_size = (other for other in others if context.size_of(other) == size)
    choices = [answer, *islice(same_size, NUM_CHOICES - 1)]
    if len(choices) == NUM_CHOICES:
        rng.shuffle(choices)
        yield {
            "source": text.path,
            "input": context.text,
            "choices": choices,
            "answer": choices.index(answer),
        }


def brackets(passages: Passages, seed: int) -> Iterator[dict[str, Any]]:
    """Yield samples that ask which bracket closes next; each kind is equally frequent.

    When the brackets of a kind are used up, they are reused after passages of other lengths.
    """
    rng = random.Random(f"{seed}-brackets")  # noqa: S311
    sites: dict[str, list[tuple[Text, int, int]]] = {bracket: [] for bracket in BRACKETS}
    for text in passages.texts:
        for opened, closed in _bracket_pairs(text.text):
            if _is_own_token(text, closed):
                sites[text.text[closed]].append((text, opened, closed))
    queues = [_bracket_samples(passages, sites[bracket], rng) for bracket in BRACKETS]
    while True:
        for queue in queues:
            sample = next(queue, None)
            if sample is None:
                return
            yield sample


def _is_own_token(text: Text, closed: int) -> bool:
    """Return whether a closing bracket is a token by itself and follows no white space."""
    token = text.tokens_before(closed)
    if token == len(text.starts):
        return False
    span = text.starts[token], text.ends[token]
    return span == (closed, closed + 1) and not text.text[closed - 1].isspace()


def _bracket_samples(
    passages: Passages, sites: list[tuple[Text, int, int]], rng: random.Random
) -> Iterator[dict[str, Any]]:
    for attempt in count():
        rng.shuffle(sites)
        found = False
        for text, opened, closed in sites:
            start = text.passage_start(closed, passages.context_tokens(rng))
            if opened < start:
                continue
            context = Context(passages, text.text[start:closed])
            if any(context.size_of(choice) != 1 for choice in BRACKETS):
                continue
            found = True
            yield {
                "source": text.path,
                "input": context.text,
                "choices": BRACKETS,
                "answer": BRACKETS.index(text.text[closed]),
                "repeats": attempt,
            }
        if not found:
            return


def _bracket_pairs(text: str) -> Iterator[tuple[int, int]]:
    """Yield the offsets of matching brackets with something between them.

    Brackets inside strings can break the nesting; then all open brackets are dropped.
    """
    opened: list[int] = []
    for place, character in enumerate(text):
        if character in CLOSING:
            opened.append(place)
        elif character in BRACKETS:
            if opened and CLOSING[text[opened[-1]]] == character:
                start = opened.pop()
                if place > start + 1:
                    yield start, place
            else:
                opened.clear()
