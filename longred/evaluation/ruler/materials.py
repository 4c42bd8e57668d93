"""Texts and questions that samples are created from: the user's files, or built-in ones."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from longred.config.evaluation import NO_MMLU, RulerConfig
from longred.errors import ConfigError, where_paths_start
from longred.evaluation.ruler.v2.mmlu import read_mmlu
from longred.store.artifacts import canonical_digest

_WRONG = {
    "missing": "is missing",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list of two items",
    "too_short": "must not be empty",
    "too_long": "has too many items",
    "string_too_short": "must not be empty",
    "model_type": "must be an object",
    "dict_type": "must be an object",
}
_OTHER = "has another type than this kind of file"
"""What is wrong with a value of a file of questions, by pydantic's name."""

TEXT_PATTERNS = ("*.txt", "*.md", "*.json", "*.jsonl")
_HAYSTACK_KEY = "evaluation.ruler.haystack"
# RULER v2 surrounds each question of MMLU with at least this many others.
_MIN_AROUND = 10

Form = Literal["squad", "hotpot", "mmlu"]
"""Format of a file of questions: SQuAD 1.1 and 2.0, HotpotQA (distractor setting), or MMLU."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and what answers it.

    Attributes:
        text: the question.
        answers: every accepted answer.
        documents: indices of the documents that are always given with it.
        supporting: those of them that hold the answer.
        related: indices of documents on the same subject, which are the first distractors.
    """

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...] = ()
    supporting: tuple[int, ...] = ()
    related: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A set of questions over shared documents.

    Attributes:
        name: description of the source for display.
        documents: the documents, each text once.
        questions: the questions, in the file's order.
        solutions: the answer to each document, where documents are questions themselves.
    """

    name: str
    documents: tuple[str, ...]
    questions: tuple[Question, ...]
    solutions: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of the content."""
        content = [self.documents, [[q.text, q.answers, q.documents] for q in self.questions]]
        return canonical_digest([*content, self.solutions] if self.solutions else content)


@dataclass(frozen=True, kw_only=True)
class Materials:
    """Texts and questions that samples are created from.

    Attributes:
        haystack: description of the text for display.
        documents: the text.
        questions: questions by the form of their file.
    """

    haystack: str
    documents: Sequence[str]
    questions: dict[Form, Questions]


def read_materials(config: RulerConfig, held_out: Sequence[str] = ()) -> Materials:
    """Read the text and the questions that a configuration names.

    Args:
        config: the configuration.
        held_out: held-out documents of the data, for `haystack: held_out`.

    Raises:
        ConfigError: a file is missing or malformed; names the setting, the file and where in it.
    """
    documents: Sequence[str]
    if config.haystack == "library":
        name, documents = "Python's documentation", library_text()
    elif config.haystack == "held_out":
        name, documents = "held-out documents", tuple(held_out)
    else:
        path = Path(config.haystack).expanduser()
        name, documents = str(path), tuple(read_haystack(path))
    paths: dict[Form, str | None] = {"squad": config.squad, "hotpot": config.hotpot}
    questions = {
        form: own_questions(form) if path is None else read_questions(form, Path(path).expanduser())
        for form, path in paths.items()
    }
    if config.mmlu is not None:
        questions["mmlu"] = mmlu_questions(Path(config.mmlu).expanduser())
    return Materials(haystack=name, documents=documents, questions=questions)


@cache
def library_text() -> tuple[str, ...]:
    """Return the language reference that ships with every Python, one document a topic."""
    from pydoc_data.topics import topics

    return tuple(topics[name] for name in sorted(topics))


def read_haystack(path: Path) -> list[str]:
    """Read the documents of a file, or of all text files in a folder, sorted by path.

    A `.json` file is an object whose `text` is the document (the format of RULER's essays), a
    `.jsonl` file has one such object a line, any other file is plain text in UTF-8. In a folder,
    only files that end in txt, md, json or jsonl are read.

    Raises:
        ConfigError: there is no text, or a file is missing or malformed; names file and line.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for pattern in TEXT_PATTERNS for file in path.rglob(pattern))
    if not files:
        raise ConfigError(
            f"{_HAYSTACK_KEY}: {path}: has no file that ends in {', '.join(TEXT_PATTERNS)}"
        )
    documents = [text for file in files for text in _read_documents(file) if text.strip()]
    if not documents:
        raise ConfigError(f"{_HAYSTACK_KEY}: {path}: has no text")
    return documents


def _read_documents(path: Path) -> list[str]:
    content = _read_text(path, _HAYSTACK_KEY)
    if path.suffix == ".json":
        return [_text_of(path, 1, content)]
    if path.suffix == ".jsonl":
        lines = enumerate(content.splitlines(), start=1)
        return [_text_of(path, number, line) for number, line in lines if line.strip()]
    return [content]


def _text_of(path: Path, line: int, content: str) -> str:
    value = _parse_json(content, path, _HAYSTACK_KEY, line)
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise ConfigError(f"{_HAYSTACK_KEY}: {path}:{line}: is not an object with a `text`")
    text: str = value["text"]
    return text


def _read_text(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{key}: {path}:{line}: is not UTF-8; convert it or leave it out"
        ) from error
    except OSError as error:
        where = where_paths_start(path)
        raise ConfigError(f"{key}: {path}: cannot be read ({error.strerror}){where}") from error


def _parse_json(text: str, path: Path, key: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ConfigError(f"{key}: {path}:{line}: is not valid JSON ({error.msg})") from error


def read_questions(form: Form, path: Path) -> Questions:
    """Read the questions of a file that can be answered.

    Raises:
        ConfigError: the file is missing or malformed; names the setting, the file and where in it.
    """
    key = f"evaluation.ruler.{form}"
    convert, schema = _FORMS[form]
    value = _parse_json(_read_text(path, key), path, key)
    try:
        parsed = TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
        place = "".join(parts).lstrip(".") or "the file"
        what = str(problem.get("ctx", {}).get("error") or _WRONG.get(problem["type"], _OTHER))
        raise ConfigError(f"{key}: {path}: {place}: {what}") from None
    documents: dict[str, int] = {}
    questions = tuple(convert(parsed, lambda text: documents.setdefault(text, len(documents))))
    if not questions:
        raise ConfigError(f"{key}: {path}: the file has no question that can be answered")
    return Questions(name=str(path), documents=tuple(documents), questions=questions)


def mmlu_questions(path: Path) -> Questions:
    """Read MMLU's questions; its documents are the questions that surround those asked.

    Raises:
        ConfigError: a file is missing or malformed; names the setting, the file and where in it.
    """
    asked, others = read_mmlu(path)
    solutions: dict[str, str] = {}
    for choice in others:
        solutions.setdefault(choice.text, choice.letter)
    if len(solutions) <= _MIN_AROUND:
        raise ConfigError(
            f"evaluation.ruler.mmlu: {path}: has {len(solutions)} different questions to surround "
            f"those asked, too few for a prompt; name a file with more than {_MIN_AROUND}"
        )
    return Questions(
        name=str(path),
        documents=tuple(solutions),
        questions=tuple(Question(text=c.text, answers=(c.letter,)) for c in asked),
        solutions=tuple(solutions.values()),
    )


@cache
def own_questions(form: Form) -> Questions:
    """Return the small built-in set of questions of a form.

    Raises:
        ConfigError: there is none.
    """
    if form == "mmlu":
        raise ConfigError(f"evaluation.ruler.mmlu: {NO_MMLU}")
    with resources.as_file(resources.files(__package__) / f"{form}.json") as path:
        return replace(read_questions(form, path), name="own set")


_Text = Annotated[str, Field(min_length=1)]


class _SquadAnswer(BaseModel):
    text: _Text


class _SquadQuestion(BaseModel):
    question: str = ""
    answers: list[_SquadAnswer] = []
    is_impossible: bool = False

    @model_validator(mode="after")
    def _check_answerable(self) -> "_SquadQuestion":
        if not self.is_impossible and not (self.question and self.answers):
            raise ValueError("must have a `question` and `answers` that are not empty")
        return self


class _SquadParagraph(BaseModel):
    context: _Text
    # A paragraph of SQuAD 2.0 may have no question.
    qas: list[_SquadQuestion]


class _SquadArticle(BaseModel):
    paragraphs: list[_SquadParagraph] = Field(min_length=1)


class _Squad(BaseModel):
    data: list[_SquadArticle] = Field(min_length=1)


class _HotpotQuestion(BaseModel):
    question: _Text
    answer: _Text
    context: list[tuple[str, list[str]]] = Field(min_length=1)
    supporting_facts: list[tuple[str, Any]] | None = None


def _squad(file: _Squad, index_of: Callable[[str], int]) -> list[Question]:
    questions = []
    for article in file.data:
        article_documents = [index_of(paragraph.context) for paragraph in article.paragraphs]
        for document, paragraph in zip(article_documents, article.paragraphs, strict=True):
            related = tuple(n for n in dict.fromkeys(article_documents) if n != document)
            questions += [
                Question(
                    text=question.question,
                    answers=tuple(dict.fromkeys(answer.text for answer in question.answers)),
                    documents=(document,),
                    supporting=(document,),
                    related=related,
                )
                for question in paragraph.qas
                if not question.is_impossible
            ]
    return questions


def _hotpot(rows: list[_HotpotQuestion], index_of: Callable[[str], int]) -> list[Question]:
    questions = []
    for row in rows:
        by_title = {title: index_of(f"{title}\n{''.join(text)}") for title, text in row.context}
        facts = [title for title, _ in row.supporting_facts or () if title in by_title]
        documents = tuple(dict.fromkeys(by_title.values()))
        questions.append(
            Question(
                text=row.question,
                answers=(row.answer,),
                documents=documents,
                supporting=tuple(dict.fromkeys(by_title[title] for title in facts)) or documents,
            )
        )
    return questions


_FORMS: dict[Form, tuple[Callable[[Any, Callable[[str], int]], list[Question]], Any]] = {
    "squad": (_squad, _Squad),
    "hotpot": (_hotpot, Annotated[list[_HotpotQuestion], Field(min_length=1)]),
}
