"""Reads MMLU's multiple-choice questions, rows in the form of `cais/mmlu`."""

import re
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, Field, field_validator

from longred.errors import ConfigError, where_paths_start
from longred.evaluation.ruler.questions import Question, Questions
from longred.evaluation.ruler.rows import ROW_SUFFIXES, Source, read_rows, validated

LETTERS = "ABCD"
ASKED, AROUND = "test", "auxiliary_train"
"""Splits of the questions that are asked, and of those around them."""

SUBSET = "all"
"""Folder of the rows of all subjects, in the dataset on the hub."""

_SUFFIXES = ", ".join(ROW_SUFFIXES)
# RULER v2 surrounds each question with at least this many others.
_MIN_AROUND = 10
# Any white space but a single space, which needs no change.
_WHITE_SPACE = re.compile(r"[^\S ]\s*| \s+")


class _Row(BaseModel):
    question: Annotated[str, Field(min_length=1)]
    choices: list[str]
    answer: int

    @field_validator("choices")
    @classmethod
    def _check_choices(cls, choices: list[str]) -> list[str]:
        if len(choices) != len(LETTERS):
            raise ValueError(f"must be four texts, has {len(choices)}")
        return choices

    @field_validator("answer", mode="before")
    @classmethod
    def _check_answer(cls, answer: Any) -> int:
        if isinstance(answer, str) and len(answer) == 1 and answer in LETTERS:
            return LETTERS.index(answer)
        if type(answer) is not int or answer not in range(len(LETTERS)):
            raise ValueError("must be a number from 0 to 3, or a letter from A to D")
        return answer

    @property
    def letter(self) -> str:
        """The right choice."""
        return LETTERS[self.answer]

    def on_one_line(self) -> str:
        """Return the question and its choices; white space becomes one space, as in RULER v2."""
        choices = "\n".join(map("{}. {}".format, LETTERS, self.choices))
        return _WHITE_SPACE.sub(" ", f"{self.question}\n{choices}")


def read_mmlu(source: Source) -> Questions:
    """Read the questions that are asked; the documents are the questions around them.

    Those are two splits of a folder or dataset; the questions of a single file are both.

    Raises:
        ConfigError: a file is missing or malformed; names the setting, the file and where in it.
        PreflightError: a dataset cannot be fetched.
    """
    if source.is_on_hub or source.local.is_dir():
        asked, around = (_read_split(source, split) for split in (ASKED, AROUND))
    elif source.has_rows:
        asked = around = _read(source)
    else:
        where = where_paths_start(source.local)
        raise ConfigError(
            f"{source.key}: {source}: is no folder{where}, nor a file that ends in {_SUFFIXES}"
        )
    solutions: dict[str, str] = {}
    for row in around:
        solutions.setdefault(row.on_one_line(), row.letter)
    if len(solutions) <= _MIN_AROUND:
        raise ConfigError(
            f"{source.key}: {source}: has {len(solutions)} different questions to surround those "
            f"asked, too few for a prompt; give more than {_MIN_AROUND}"
        )
    return Questions(
        name=str(source),
        documents=tuple(solutions),
        questions=tuple(Question(text=row.on_one_line(), answers=(row.letter,)) for row in asked),
        solutions=tuple(solutions.values()),
    )


def _read_split(source: Source, split: str) -> list[_Row]:
    if source.is_on_hub:
        return _read(replace(source, subset=SUBSET, split=split))
    whole = source.local / SUBSET
    folder = whole if whole.is_dir() else source.local
    paths = sorted(path for path in folder.glob(f"{split}*") if path.name.endswith(ROW_SUFFIXES))
    if not paths:
        raise ConfigError(
            f"{source.key}: {folder}: has no file {split}* that ends in {_SUFFIXES}; copy the "
            "files of cais/mmlu there, or name a single file"
        )
    return [row for path in paths for row in _read(replace(source, path=str(path)))]


def _read(source: Source) -> list[_Row]:
    schema = Annotated[list[_Row], Field(min_length=1)]
    rows: list[_Row] = validated(schema, read_rows(source), f"{source.key}: {source}")
    return rows
