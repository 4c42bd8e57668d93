"""Texts and questions that samples are created from: the user's files, or built-in ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from longred.config.evaluation import RulerConfig
from longred.errors import ConfigError
from longred.evaluation.ruler.pairs import Record, read_records
from longred.evaluation.ruler.questions import Form, Questions, own_questions, read_questions
from longred.evaluation.ruler.rows import Source, parse_json, read_text
from longred.evaluation.ruler.tasks import TASKS
from longred.evaluation.ruler.v2.mmlu import read_mmlu

TEXT_PATTERNS = ("*.txt", "*.md", "*.json", "*.jsonl")
BUILTIN: tuple[Form, ...] = ("squad", "hotpot")
"""Forms of which a small set is packaged."""
_HAYSTACK_KEY = "evaluation.ruler.haystack"


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
    return Materials(
        haystack=name,
        documents=documents,
        questions={form: own_questions(form) for form in BUILTIN if form not in sources}
        | {form: _read(form, source) for form, source in sources.items()},
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
    if config.mmlu is not None:
        sources["mmlu"] = Source(
            key="evaluation.ruler.mmlu", path=config.mmlu, revision=config.mmlu_revision
        )
    asked = {TASKS[task].questions for task in config.tasks if task in TASKS}
    return {form: s for form, s in sources.items() if form in asked or not s.is_on_hub}


def reads_hub(config: RulerConfig) -> bool:
    """Return whether questions are read from the hub."""
    return any(source.is_on_hub for source in question_sources(config).values())


def _read(form: Form, source: Source) -> Questions:
    # A pinned dataset never changes.
    return _pinned_questions(form, source) if source.is_on_hub else _read_form(form, source)


@cache
def _pinned_questions(form: Form, source: Source) -> Questions:
    return _read_form(form, source)


def _read_form(form: Form, source: Source) -> Questions:
    return read_mmlu(source) if form == "mmlu" else read_questions(form, source)


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
        # Not splitlines: JSON does not escape all line ends of Unicode.
        lines = enumerate(content.split("\n"), start=1)
        return [_text_of(path, number, line) for number, line in lines if line.strip()]
    return [content]


def _text_of(path: Path, line: int, content: str) -> str:
    value = parse_json(content, path, _HAYSTACK_KEY, line)
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise ConfigError(f"{_HAYSTACK_KEY}: {path}:{line}: is not an object with a `text`")
    text: str = value["text"]
    return text
