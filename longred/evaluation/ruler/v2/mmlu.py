"""Reads MMLU's multiple-choice questions from local files in the form of `cais/mmlu`."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from longred.errors import ConfigError, where_paths_start

KEY = "evaluation.ruler.mmlu"
LETTERS = "ABCD"

_COLUMNS = ("question", "choices", "answer")
# Any white space but a single space, which needs no change.
_WHITE_SPACE = re.compile(r"[^\S ]\s*| \s+")

Row = tuple[str, dict[str, Any]]
"""Where a question stands in its file, and its columns."""


class Choice(NamedTuple):
    """A question.

    Attributes:
        text: the question and its four choices on one line.
        letter: the right choice.
    """

    text: str
    letter: str


def read_mmlu(path: Path) -> tuple[list[Choice], list[Choice]]:
    """Read the questions that are asked, and those that surround them.

    A folder (or its folder `all`, as on the hub) holds files `test*`, which are asked, and
    `auxiliary_train*`. The questions of a single file are both.

    Raises:
        ConfigError: a file is missing or malformed; names the file and the line or row.
    """
    if not path.is_dir():
        questions = _read(path)
        return questions, questions
    folder = path / "all" if (path / "all").is_dir() else path
    asked, others = (_read_split(folder, split) for split in ("test", "auxiliary_train"))
    return asked, others


def _read_split(folder: Path, split: str) -> list[Choice]:
    files = sorted(path for path in folder.glob(f"{split}*") if path.suffix in _READERS)
    if not files:
        raise ConfigError(
            f"{KEY}: {folder}: has no file {split}* that ends in {', '.join(_READERS)}; "
            "copy the files of cais/mmlu there, or name a single file"
        )
    return [question for path in files for question in _read(path)]


def _read(path: Path) -> list[Choice]:
    if path.suffix not in _READERS:
        raise ConfigError(f"{KEY}: {path}: must be a folder, or end in {', '.join(_READERS)}")
    try:
        questions = [_choice(path, place, row) for place, row in _READERS[path.suffix](path)]
    except OSError as error:
        where = where_paths_start(path)
        raise ConfigError(f"{KEY}: {path}: cannot be read ({error.strerror}){where}") from error
    except csv.Error as error:
        raise ConfigError(f"{KEY}: {path}: is not a CSV file ({error})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{KEY}: {path}: is not UTF-8; convert it") from error
    if not questions:
        raise ConfigError(f"{KEY}: {path}: has no question")
    return questions


def _choice(path: Path, place: str, row: dict[str, Any]) -> Choice:
    """Check a row and return its question; white space becomes one space, as in RULER v2."""
    question, choices = row.get("question"), row.get("choices")
    letter = _letter(row.get("answer"))

    def refuse(what: str) -> NoReturn:
        raise ConfigError(f"{KEY}: {path}:{place}: {what}")

    if not isinstance(question, str) or not question.strip():
        refuse("question must be text")
    if not isinstance(choices, list) or len(choices) != len(LETTERS):
        refuse("choices must be a list of four texts")
    if not all(isinstance(choice, str) for choice in choices):
        refuse("choices must be a list of four texts")
    if letter is None:
        refuse("answer must be a number from 0 to 3, or a letter from A to D")
    listed = "\n".join(f"{name}. {text}" for name, text in zip(LETTERS, choices, strict=True))
    return Choice(_WHITE_SPACE.sub(" ", f"{question}\n{listed}"), letter)


def _letter(answer: Any) -> str | None:
    """Return the letter of an answer that is given as number or letter."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return LETTERS[answer] if 0 <= answer < len(LETTERS) else None
    return answer if answer in tuple(LETTERS) else None


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        missing = [column for column in _COLUMNS if column not in file.schema_arrow.names]
        if missing:
            raise ConfigError(f"{KEY}: {path}: has no column {', '.join(missing)}")
        rows = file.read(columns=[*_COLUMNS]).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"{KEY}: {path}: is not a parquet file ({error})") from error
    for number, row in enumerate(rows):
        yield f"row {number}", row


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = _parsed(line)
            if not isinstance(row, dict):
                raise ConfigError(f"{KEY}: {path}:{number}: is not a JSON object")
            yield str(number), row


def _csv_rows(path: Path) -> Iterator[Row]:
    """Yield rows whose `choices` are a JSON list and whose `answer` is a digit or letter."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            answer = row.get("answer") or ""
            values = {"question": row.get("question"), "choices": _parsed(row.get("choices") or "")}
            values["answer"] = int(answer) if answer.isdecimal() else answer
            yield str(reader.line_num), values


def _parsed(text: str) -> Any:
    """Return a JSON value, or None if the text is not valid JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".parquet": _parquet_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
}
