"""Texts and questions that samples are created from: the user's files, or built-in ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from longred.config.evaluation import RulerConfig
from longred.errors import ConfigError
from longred.evaluation.ruler.pairs import Record, read_records
from longred.evaluation.ruler.questions import (
    Form,
    Question,
    Questions,
    own_questions,
    read_questions,
)
from longred.evaluation.ruler.rows import Source, parse_json, read_text
from longred.evaluation.ruler.tasks import TASKS
from longred.evaluation.ruler.v2.mmlu import read_mmlu

TEXT_PATTERNS = ("*.txt", "*.md", "*.json", "*.jsonl")
_HAYSTACK_KEY = "evaluation.ruler.haystack"
# RULER v2 surrounds each question of MMLU with at least this many others.
_MIN_AROUND = 10


@dataclass(frozen=True, kw_only=True)
class Materials:
    """Texts and questions that samples are created from.

    Attributes:
        haystack: description of the text for display.
        documents: the text.
        questions: questions by the form of their file.
        records: published samples of `kv_retrieval`, if a file of them is given.
    """

    haystack: str
    documents: Sequence[str]
    questions: dict[Form, Questions]
    records: tuple[Record, ...] = ()


def read_materials(config: RulerConfig, held_out: Sequence[str] = ()) -> Materials:
    """Read the text and the questions that a configuration names.

    Args:
        config: the configuration.
        held_out: held-out documents of the data, for `haystack: held_out`.

    Raises:
        ConfigError: a file is missing or malformed; names the setting, the file and where in it.
        PreflightError: a dataset on the hub cannot be fetched.
    """
    documents: Sequence[str]
    if config.haystack == "library":
        name, documents = "Python's documentation", library_text()
    elif config.haystack == "held_out":
        name, documents = "held-out documents", tuple(held_out)
    else:
        path = Path(config.haystack).expanduser()
        name, documents = str(path), tuple(read_haystack(path))
    sources = question_sources(config)
    forms: tuple[Form, ...] = ("squad", "hotpot")
    questions = {
        form: _read(form, sources[form]) if form in sources else own_questions(form)
        for form in forms
    }
    if config.mmlu is not None:
        questions["mmlu"] = mmlu_questions(Path(config.mmlu).expanduser())
    return Materials(
        haystack=name,
        documents=documents,
        questions=questions,
        records=read_records(config.kv_records) if config.kv_records else (),
    )


def question_sources(config: RulerConfig) -> dict[Form, Source]:
    """Return where questions are read from, by form; a form on packaged questions is left out.

    A dataset on the hub is left out too where no task asks its questions.
    """
    sources: dict[Form, Source] = {}
    if config.squad is not None:
        sources["squad"] = Source(
            key="evaluation.ruler.squad",
            path=config.squad,
            revision=config.squad_revision,
            subset=config.squad_subset,
            split=config.squad_split,
        )
    if config.hotpot is not None:
        sources["hotpot"] = Source(
            key="evaluation.ruler.hotpot",
            path=config.hotpot,
            revision=config.hotpot_revision,
            subset=config.hotpot_subset,
            split=config.hotpot_split,
        )
    asked = {TASKS[task].questions for task in config.tasks if task in TASKS}
    return {form: s for form, s in sources.items() if form in asked or not s.is_on_hub}


def reads_hub(config: RulerConfig) -> bool:
    """Return whether questions are read from the hub."""
    return any(source.is_on_hub for source in question_sources(config).values())


def _read(form: Form, source: Source) -> Questions:
    # A pinned dataset never changes.
    return _pinned_questions(form, source) if source.is_on_hub else read_questions(form, source)


@cache
def _pinned_questions(form: Form, source: Source) -> Questions:
    return read_questions(form, source)


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
    content = read_text(path, _HAYSTACK_KEY)
    if path.suffix == ".json":
        return [_text_of(path, 1, content)]
    if path.suffix == ".jsonl":
        lines = enumerate(content.splitlines(), start=1)
        return [_text_of(path, number, line) for number, line in lines if line.strip()]
    return [content]


def _text_of(path: Path, line: int, content: str) -> str:
    value = parse_json(content, path, _HAYSTACK_KEY, line)
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise ConfigError(f"{_HAYSTACK_KEY}: {path}:{line}: is not an object with a `text`")
    text: str = value["text"]
    return text


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
