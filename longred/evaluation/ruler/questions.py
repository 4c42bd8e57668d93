"""Questions with the documents that answer them, from files in the form of SQuAD or HotpotQA."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from longred.errors import ConfigError
from longred.store.artifacts import canonical_digest


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and what answers it.

    Attributes:
        text: the question.
        answers: every accepted answer.
        documents: numbers of the documents that are always given with it.
        supporting: those of them that hold the answer.
        related: numbers of the documents that distract first, being about the same.
    """

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    supporting: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A set of questions over shared documents.

    Attributes:
        name: where it comes from, for people.
        documents: the documents.
        questions: the questions, in the file's order.
    """

    name: str
    documents: tuple[str, ...]
    questions: tuple[Question, ...]

    @property
    def digest(self) -> str:
        """Identity of the content."""
        return canonical_digest(
            [self.documents, [[q.text, q.answers, q.documents] for q in self.questions]]
        )


def read_squad(path: Path, key: str = "evaluation.ruler.squad") -> Questions:
    """Return the answerable questions of a file in the form of SQuAD 1.1 or 2.0.

    Args:
        path: the JSON file.
        key: the setting that names it, for messages.

    Raises:
        ConfigError: the file is missing or malformed; names the setting, file and place.
    """
    return _squad(_File(path, key), str(path))


def read_hotpot(path: Path, key: str = "evaluation.ruler.hotpot") -> Questions:
    """Return the questions of a file in the form of HotpotQA (distractor setting).

    Args:
        path: the JSON file.
        key: the setting that names it, for messages.

    Raises:
        ConfigError: the file is missing or malformed; names the setting, file and place.
    """
    return _hotpot(_File(path, key), str(path))


@cache
def own_squad() -> Questions:
    """Return the small set of this package in SQuAD's form."""
    with resources.as_file(resources.files(__package__) / "squad.json") as path:
        return _squad(_File(path, "squad"), "own set")


@cache
def own_hotpot() -> Questions:
    """Return the small set of this package in HotpotQA's form."""
    with resources.as_file(resources.files(__package__) / "hotpot.json") as path:
        return _hotpot(_File(path, "hotpot"), "own set")


class _File:
    """A JSON file whose parts are checked as they are read, so that a message names the place."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        try:
            self.value = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{key}: {path}:{error.lineno}: is not valid JSON ({error.msg})"
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{key}: {path}: is not UTF-8 (byte {error.start})") from error
        except OSError as error:
            raise ConfigError(f"{key}: {path}: cannot be read ({error.strerror})") from error

    def get(self, value: Any, place: str, kind: type, what: str) -> Any:
        if not isinstance(value, kind) or (kind is not dict and not value):
            self.refuse(place, f"must be {what}")
        return value

    def refuse(self, place: str, problem: str) -> None:
        raise ConfigError(f"{self.key}: {self.path}: {place.lstrip('.') or 'the file'} {problem}")

    def text(self, parent: dict[str, Any], place: str, name: str) -> str:
        value: str = self.get(parent.get(name), f"{place}.{name}", str, "a text that is not empty")
        return value

    def list(self, parent: dict[str, Any], place: str, name: str) -> Sequence[tuple[str, Any]]:
        where = f"{place}.{name}"
        value = self.get(parent.get(name), where, list, "a list that is not empty")
        return [(f"{where}[{number}]", item) for number, item in enumerate(value)]

    def objects(
        self, parent: dict[str, Any], place: str, name: str
    ) -> Sequence[tuple[str, dict[str, Any]]]:
        items = self.list(parent, place, name)
        return [(where, self.get(item, where, dict, "an object")) for where, item in items]


class _Documents:
    """Numbers documents by their first occurrence, each text once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))


def _squad(file: _File, name: str) -> Questions:
    root = file.get(file.value, "", dict, "an object with a list `data`")
    documents, questions = _Documents(), []
    for place, article in file.objects(root, "", "data"):
        paragraphs = file.objects(article, place, "paragraphs")
        numbers = [documents.number(file.text(p, where, "context")) for where, p in paragraphs]
        for number, (where, paragraph) in zip(numbers, paragraphs, strict=True):
            # A paragraph of SQuAD 2.0 may have no question at all.
            asked = file.objects(paragraph, where, "qas") if paragraph.get("qas") != [] else []
            for at, question in asked:
                if question.get("is_impossible", False):
                    continue
                answers = [
                    file.text(a, spot, "text") for spot, a in file.objects(question, at, "answers")
                ]
                questions.append(
                    Question(
                        text=file.text(question, at, "question"),
                        answers=tuple(dict.fromkeys(answers)),
                        documents=(number,),
                        supporting=(number,),
                        related=tuple(n for n in dict.fromkeys(numbers) if n != number),
                    )
                )
    return _questions(file, name, documents, questions)


def _hotpot(file: _File, name: str) -> Questions:
    rows = file.get(file.value, "", list, "a list of questions that is not empty")
    documents, questions = _Documents(), []
    for index, row in enumerate(rows):
        place = f"[{index}]"
        file.get(row, place, dict, "an object")
        titles: dict[str, int] = {}
        for where, pair in file.list(row, place, "context"):
            title = _title(file, where, pair)
            titles[title] = documents.number(_paragraph(file, where, pair))
        facts = [_title(file, where, fact) for where, fact in _facts(file, row, place)]
        supporting = tuple(dict.fromkeys(titles[title] for title in facts if title in titles))
        questions.append(
            Question(
                text=file.text(row, place, "question"),
                answers=(file.text(row, place, "answer"),),
                documents=tuple(dict.fromkeys(titles.values())),
                supporting=supporting or tuple(dict.fromkeys(titles.values())),
            )
        )
    return _questions(file, name, documents, questions)


def _facts(file: _File, row: dict[str, Any], place: str) -> Sequence[tuple[str, Any]]:
    return file.list(row, place, "supporting_facts") if row.get("supporting_facts") else []


def _title(file: _File, where: str, pair: Any) -> str:
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
        file.refuse(where, "must be a pair that begins with a title")
    title: str = pair[0]
    return title


def _paragraph(file: _File, where: str, pair: Any) -> str:
    sentences = pair[1]
    if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
        file.refuse(f"{where}[1]", "must be a list of sentences")
    return f"{pair[0]}\n{''.join(sentences)}"


def _questions(
    file: _File, name: str, documents: _Documents, questions: list[Question]
) -> Questions:
    if not questions:
        file.refuse("", "has no question that can be answered")
    return Questions(name=name, documents=tuple(documents.numbers), questions=tuple(questions))


READERS: dict[str, Callable[[Path], Questions]] = {"squad": read_squad, "hotpot": read_hotpot}
"""Form of a file → what reads it."""

OWN: dict[str, Callable[[], Questions]] = {"squad": own_squad, "hotpot": own_hotpot}
"""Form → this package's own small set."""
