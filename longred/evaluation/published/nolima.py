"""NoLiMa (arXiv 2502.05167): facts that share no words with the question, hidden in books.

Needles, questions and haystacks are read from the user's files (amodaresi/NoLiMa on the hub). Their
licence and that of the benchmark's program allow research without commercial purpose only, so
neither is part of this package: this file is written from the paper and from the form of the files.
The wording around book and question is this package's own, unless the file of needles has a
`task_template` or the setting `template` gives one, with `{haystack}` and `{question}`.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from longred.errors import ConfigError, PreflightError
from longred.evaluation.published.reading import Reading
from longred.evaluation.tasks import Row

TEMPLATE = (
    "Here is a part of a book.\n\n{haystack}\n\nAnswer the question with what the text says or "
    "what follows from it. Give only the answer, as short as possible.\n\nQuestion: {question}"
)
NUM_DEPTHS = 26
"""Positions of a needle in a haystack, from its beginning to its end, as in the paper's runs."""
_CHARACTER = "{CHAR}"


class _Test(BaseModel):
    input_args: list[str]
    gold_answers: list[str] = []


class _Experiment(BaseModel):
    id: str
    needle: str
    questions: dict[str, str] = Field(min_length=1)
    tests: dict[str, _Test] = Field(min_length=1)
    character_set: list[str] = []
    task_template: str | None = None
    distractors: dict[str, str] | None = None


@dataclass(frozen=True)
class _Question:
    """A needle and the question for it; either may name a character still to be drawn."""

    id: str
    needle: str
    text: str
    answers: list[str]
    characters: list[str]
    template: str | None


@dataclass(frozen=True)
class _Book:
    """A haystack: its text, where each token begins, and which tokens begin a line."""

    name: str
    text: str
    starts: Sequence[int]
    lines: Sequence[int]


def read_nolima(reading: Reading) -> Iterator[Row]:
    """Yield questions about a needle in `length` tokens of a book, in random order.

    All combinations of book, question and depth take part. A needle stands before the first line
    at or behind its depth; the part of the book is chosen so that this is exactly the depth.
    """
    settings, rng = reading.settings, random.Random(f"{reading.seed}-{reading.name}")  # noqa: S311
    template = _checked_template(reading, settings["template"])
    books = [_book(reading, path) for path in reading.paths("haystack")]
    questions = [
        each
        for number in range(len(reading.test))
        for each in _questions(reading.test.row(number, _Experiment), reading.test.place(number))
    ]
    if settings["kind"] is not None:
        questions = [each for each in questions if each.id.endswith(f"-{settings['kind']}")]
        if not questions:
            raise ConfigError(f"{reading.name}: no question is of the kind {settings['kind']}")
    cases = list(product(books, questions, range(NUM_DEPTHS)))
    rng.shuffle(cases)
    for book, question, step in cases:
        depth = step / (NUM_DEPTHS - 1)
        character = rng.choice(question.characters) if question.characters else ""
        needle = question.needle.replace(_CHARACTER, character)
        text = template or _checked_template(reading, question.template) or TEMPLATE
        haystack = _hidden(reading, book, needle, settings["length"], depth)
        asked = question.text.replace(_CHARACTER, character)
        yield {
            "id": f"{question.id}-{book.name}-{step}",
            "group": question.id,
            "depth": depth,
            "input": text.replace("{question}", asked).replace("{haystack}", haystack),
            "suffix": "\nAnswer:",
            "outputs": [character] if _CHARACTER in question.needle else question.answers,
            "max_new_tokens": settings["max_new_tokens"],
            "until": [],
            "until_plain": ["\n"],
        }


def _questions(row: _Experiment, place: str) -> Iterator[_Question]:
    """Yield every question of an experiment, with its arguments filled in."""
    needs_character = _CHARACTER in row.needle
    if row.distractors:
        raise ConfigError(
            f"{place}: {row.id}: has distractors, which are not hidden here, so the scores would "
            "be those of an easier task; use a file of needles without, such as needle_set.json"
        )
    for (kind, question), (name, test) in product(row.questions.items(), row.tests.items()):
        label = f"{row.id}-{name}-{kind}"
        if needs_character and not row.character_set:
            raise ConfigError(f"{place}: {label}: names a character and has no character_set")
        if not needs_character and not test.gold_answers:
            raise ConfigError(f"{place}: {label}: has no gold_answers")
        yield _Question(
            label,
            _with_arguments(row.needle, test.input_args),
            _with_arguments(question, test.input_args),
            test.gold_answers,
            row.character_set if needs_character else [],
            row.task_template,
        )


def _with_arguments(text: str, arguments: Sequence[str]) -> str:
    """Replace `{1}`, `{2}` … by the arguments."""
    for number, argument in enumerate(arguments, start=1):
        text = text.replace(f"{{{number}}}", argument)
    return text


def _book(reading: Reading, path: Path) -> _Book:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{reading.name}: {path}: is not UTF-8 ({error})") from error
    encoded: Mapping[str, Any] = reading.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    starts = [start for start, _ in encoded["offset_mapping"]]
    lines = [0]
    for index in range(1, len(starts)):
        if "\n" in text[starts[index - 1] : starts[index]]:
            lines.append(index)
    return _Book(path.stem, text, starts, lines)


def _hidden(reading: Reading, book: _Book, needle: str, length: int, depth: float) -> str:
    """Return `length` tokens of a book with a needle at a depth, on a line of its own."""
    before = round(length * depth)
    line = next((each for each in book.lines if each >= before), None)
    if line is None or line - before + length > len(book.starts):
        raise PreflightError(
            f"{reading.name}: {book.name} has {len(book.starts)} tokens, too few for a haystack of "
            f"{length} with a needle at a depth of {depth:.0%}; use longer books or shorter lengths"
        )
    first, last = line - before, line - before + length
    end = book.starts[last] if last < len(book.starts) else len(book.text)
    middle = book.starts[line] if line < len(book.starts) else len(book.text)
    return f"{book.text[book.starts[first] : middle]}{needle}\n{book.text[middle:end]}"


def _checked_template(reading: Reading, template: str | None) -> str | None:
    if template is not None and not all(f"{{{n}}}" in template for n in ("haystack", "question")):
        raise ConfigError(
            f"{reading.name}: the template must contain {{haystack}} and {{question}}: {template!r}"
        )
    return template
