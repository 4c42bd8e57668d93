"""Sets of questions over documents: SQuAD's and HotpotQA's, in their own form and in the hub's."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from longred.config.evaluation import NO_MMLU
from longred.errors import ConfigError
from longred.evaluation.ruler.rows import Source, parse_json, read_rows, read_text, validated
from longred.store.artifacts import canonical_digest

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
        is_builtin: whether this is a packaged set, which is small.
        solutions: the answer to each document, where documents are questions themselves.
    """

    name: str
    documents: tuple[str, ...]
    questions: tuple[Question, ...]
    is_builtin: bool = False
    solutions: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of the content."""
        questions = [[q.text, q.answers, q.documents] for q in self.questions]
        content: list[Any] = [self.documents, questions]
        # Which of a question's documents hold its answer decides what is asked and shown.
        if any(q.supporting != q.documents for q in self.questions):
            content.append([q.supporting for q in self.questions])
        return canonical_digest([*content, self.solutions] if self.solutions else content)

    def question_id(self, question: Question) -> str:
        """Return an identifier of a question that depends on its content only."""
        given = [self.documents[number] for number in question.documents]
        return canonical_digest([question.text, question.answers, given])[:16]


def read_questions(form: Form, source: Source | Path) -> Questions:
    """Read the questions that can be answered, of the original file or in the hub's form.

    Both forms give the same questions.

    Raises:
        ConfigError: the source is missing or malformed; names the setting, the file and where in
            it.
        PreflightError: a dataset cannot be fetched.
    """
    if isinstance(source, Path):
        source = Source(key=f"evaluation.ruler.{form}", path=str(source))
    key = source.key
    if source.has_rows:
        (convert, schema), value = _ROW_FORMS[form], read_rows(source)
    else:
        text = read_text(source.local, key)
        (convert, schema), value = _FORMS[form], parse_json(text, source.local, key)
    parsed = validated(schema, value, f"{key}: {source}")
    documents: dict[str, int] = {}
    questions = tuple(convert(parsed, lambda text: documents.setdefault(text, len(documents))))
    if not questions:
        raise ConfigError(f"{key}: {source}: the file has no question that can be answered")
    return Questions(name=str(source), documents=tuple(documents), questions=questions)


@cache
def own_questions(form: Form) -> Questions:
    """Return the small built-in set of questions of a form.

    Raises:
        ConfigError: there is none.
    """
    if form == "mmlu":
        raise ConfigError(f"evaluation.ruler.mmlu: {NO_MMLU}")
    with resources.as_file(resources.files(__package__) / f"{form}.json") as path:
        return replace(read_questions(form, path), name="own set", is_builtin=True)


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

    @field_validator("context", "supporting_facts", mode="before")
    @classmethod
    def _pair_columns(cls, value: Any) -> Any:
        """Turn columns, the hub's form, into pairs."""
        if not isinstance(value, dict):
            return value
        columns = list(value.values())
        if (
            "title" not in value
            or len(columns) != 2
            or not all(isinstance(c, list) for c in columns)
        ):
            raise ValueError("must hold two lists, `title` and its `sentences` or `sent_id`")
        titles = value["title"]
        (others,) = (column for name, column in value.items() if name != "title")
        if len(titles) != len(others):
            raise ValueError(f"has {len(titles)} titles, but {len(others)} entries for them")
        return [*zip(titles, others, strict=True)]


class _RowAnswers(BaseModel):
    text: list[_Text]


class _SquadRow(BaseModel):
    title: str
    context: _Text
    question: str
    answers: _RowAnswers

    @model_validator(mode="after")
    def _check_question(self) -> "_SquadRow":
        if self.answers.text and not self.question:
            raise ValueError("must have a `question` that is not empty")
        return self


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


def _squad_rows(rows: list[_SquadRow], index_of: Callable[[str], int]) -> list[Question]:
    articles: dict[str, dict[str, list[_SquadQuestion]]] = {}
    for row in rows:
        question = _SquadQuestion(
            question=row.question,
            answers=[_SquadAnswer(text=text) for text in row.answers.text],
            # SQuAD 2.0 lists no answer of a question without one.
            is_impossible=not row.answers.text,
        )
        articles.setdefault(row.title, {}).setdefault(row.context, []).append(question)
    data = [
        _SquadArticle(
            paragraphs=[
                _SquadParagraph(context=context, qas=questions)
                for context, questions in paragraphs.items()
            ]
        )
        for paragraphs in articles.values()
    ]
    return _squad(_Squad(data=data), index_of)


_Convert = Callable[[Any, Callable[[str], int]], list[Question]]

_FORMS: dict[Form, tuple[_Convert, Any]] = {
    "squad": (_squad, _Squad),
    "hotpot": (_hotpot, Annotated[list[_HotpotQuestion], Field(min_length=1)]),
}
"""Form → function that converts the original file, and that file's schema."""

_ROW_FORMS: dict[Form, tuple[_Convert, Any]] = {
    "squad": (_squad_rows, Annotated[list[_SquadRow], Field(min_length=1)]),
    "hotpot": _FORMS["hotpot"],
}
"""The same for rows in the hub's form."""
