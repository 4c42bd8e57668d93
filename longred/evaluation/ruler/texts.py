"""The text that needles are hidden in: a user's, or Python's own documentation."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from longred.errors import ConfigError

KEY = "evaluation.ruler.haystack"
PATTERNS = ("*.txt", "*.md", "*.json", "*.jsonl")


@cache
def library_text() -> tuple[str, ...]:
    """Return the language reference that every Python carries, an entry for each topic."""
    from pydoc_data.topics import topics

    return tuple(topics[name] for name in sorted(topics))


def read_haystack(path: Path) -> list[str]:
    """Return the documents of a file, or of all files in a folder, by path.

    A `.json` file is an object whose `text` is the document (as RULER's essays are), a `.jsonl`
    file has such an object on each line, any other file is plain text in UTF-8. Of a folder, files
    that end in txt, md, json or jsonl count.

    Raises:
        ConfigError: there is none, it cannot be read or is malformed; names file and line.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for pattern in PATTERNS for file in path.rglob(pattern))
    if not files:
        raise ConfigError(f"{KEY}: {path}: has no file that ends in {', '.join(PATTERNS)}")
    documents = [text for file in files for text in _read(file) if text.strip()]
    if not documents:
        raise ConfigError(f"{KEY}: {path}: has no text")
    return documents


def _read(file: Path) -> Sequence[str]:
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{KEY}: {file}:{line}: is not UTF-8; convert it, or leave it out") from (
            error
        )
    except OSError as error:
        raise ConfigError(f"{KEY}: {file}: cannot be read ({error.strerror})") from error
    return _PARSERS.get(file.suffix, _plain)(file, content)


def _plain(file: Path, content: str) -> Sequence[str]:
    return [content]


def _json(file: Path, content: str) -> Sequence[str]:
    return [_text(file, 1, content)]


def _json_lines(file: Path, content: str) -> Sequence[str]:
    lines = enumerate(content.splitlines(), start=1)
    return [_text(file, number, line) for number, line in lines if line.strip()]


def _text(file: Path, line: int, content: str) -> str:
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{KEY}: {file}:{line + error.lineno - 1}: is not valid JSON ({error.msg})"
        ) from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise ConfigError(f"{KEY}: {file}:{line}: is not an object with a `text`")
    text: str = value["text"]
    return text


_PARSERS: dict[str, Callable[[Path, str], Sequence[str]]] = {".json": _json, ".jsonl": _json_lines}
