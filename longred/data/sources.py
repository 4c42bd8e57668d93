"""Opens the corpora a recipe names and hands out their documents window by window.

A window is a bounded amount of text: what is sorted by id before it is drawn from, and what a
stopped preparation repeats. Reading a source twice gives the same windows.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longred.artifacts import sha256_file
from longred.config import DataConfig, SourceConfig
from longred.data.documents import Document, document_id, is_held_out
from longred.data.files import find_files, read_files, read_table
from longred.data.intake import Intake
from longred.errors import ConfigError, PreflightError

WINDOW_BYTES = 64 * 2**20
WINDOW_DOCUMENTS = 65536
PRACTICE_WINDOW = 1024
NATURAL = ("library", "files", "hub")

Wanted = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A source that can be read.

    Attributes:
        config: its section of the recipe.
        key: its dotted key, for messages.
        intake: counts of what was read.
        windows: called with what is still wanted; yields windows from the first one on. A source
            that makes its texts makes only wanted ones; others hand out everything.
    """

    config: SourceConfig
    key: str
    intake: Intake
    windows: Callable[[Wanted], Iterator[list[Document]]]

    @property
    def is_natural(self) -> bool:
        """Whether its texts were found and not made."""
        return self.config.kind in NATURAL


def open_sources(config: DataConfig) -> list[OpenSource]:
    """Return the recipe's sources, opened as far as needed to know that they can be read.

    Raises:
        ConfigError: a path does not exist, a hub source has no pinned revision, or two sources
            would read the same texts, which would put one document into two buckets.
        PreflightError: a hub source cannot be reached.
    """
    seen: dict[tuple[Any, ...], str] = {}
    for source in config.sources:
        identity: tuple[Any, ...] = (source.kind,)
        if source.kind != "library":
            identity += (source.path, source.subset, source.split, source.length)
        if identity in seen:
            raise ConfigError(
                f"data.sources: {seen[identity]} and {source.name} read the same texts; "
                "make them one source with the shares of both"
            )
        seen[identity] = source.name
    return [
        _open(config, source, f"data.sources.{number}")
        for number, source in enumerate(config.sources)
    ]


def _open(config: DataConfig, source: SourceConfig, key: str) -> OpenSource:
    intake = Intake(source.name, config.max_rejected_fraction)
    return OpenSource(source, key, intake, KINDS[source.kind](config, source, key, intake))


def _open_library(
    config: DataConfig, source: SourceConfig, key: str, intake: Intake
) -> Callable[[Wanted], Iterator[list[Document]]]:
    return lambda wanted: _windows(_library(intake))


def _library(intake: Intake) -> Iterator[Document]:
    for document in _library_documents():
        intake.take("library")
        yield document


@functools.cache
def _library_documents() -> tuple[Document, ...]:
    """Return every module; read once a process, for practice texts quote them too."""
    from longred.demo.corpus import SOURCE_NAME, library_documents

    # Ids do not depend on the source's name in the recipe: they must agree with the split that the
    # demo model was trained on.
    try:
        return tuple(
            Document(document_id(SOURCE_NAME, path), path, text)
            for path, text in library_documents()
        )
    except FileNotFoundError as error:
        raise PreflightError(f"{error}; this Python has no source of its library") from error


def _open_practice(
    config: DataConfig, source: SourceConfig, key: str, intake: Intake
) -> Callable[[Wanted], Iterator[list[Document]]]:
    length = source.length
    if length is None:
        raise ConfigError(f"{key}.length: a source of kind practice needs a length in tokens")

    def windows(wanted: Wanted) -> Iterator[list[Document]]:
        from longred.demo.skills import practice_document

        passages = [
            document.text
            for document in _library_documents()
            if not is_held_out(document.id, config.validation_fraction)
        ]
        first = 0
        while True:
            window = []
            for index in range(first, first + PRACTICE_WINDOW):
                id = document_id(source.name, str(index))
                if wanted(id):
                    text = practice_document(config.seed, index, length=length, passages=passages)
                    window.append(Document(id, str(index), text))
            first += PRACTICE_WINDOW
            yield window

    return windows


def _open_files(
    config: DataConfig, source: SourceConfig, key: str, intake: Intake
) -> Callable[[Wanted], Iterator[list[Document]]]:
    root, paths = find_files(source.path or "", key)
    return lambda wanted: _windows(read_files(source.name, root, paths, source.text_field, intake))


def _open_hub(
    config: DataConfig, source: SourceConfig, key: str, intake: Intake
) -> Callable[[Wanted], Iterator[list[Document]]]:
    if not source.revision:
        raise ConfigError(
            f"{key}.revision: pin the commit of {source.path}, a branch name can move"
        )
    shard = "/".join(part for part in (source.path, source.subset, source.split) if part)
    dataset = _load_hub(source, key)
    return lambda wanted: _windows(
        read_table(source.name, shard, _reachable(dataset, source, key), source.text_field, intake)
    )


def _load_hub(source: SourceConfig, key: str) -> Iterable[Any]:
    from datasets import load_dataset

    # datasets >= 4 runs no code of a data set's own and has no argument that would allow it.
    try:
        dataset: Iterable[Any] = load_dataset(
            source.path,
            name=source.subset,
            split=source.split,
            revision=source.revision,
            streaming=True,
        )
    except OSError as error:
        raise _unreachable(source, key, error) from error
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{key}: {source.path} cannot be opened ({error})") from error
    return dataset


def _reachable(dataset: Iterable[Any], source: SourceConfig, key: str) -> Iterator[Any]:
    try:
        yield from dataset
    except OSError as error:
        raise _unreachable(source, key, error) from error


def _unreachable(source: SourceConfig, key: str, error: Exception) -> PreflightError:
    return PreflightError(
        f"{key}: the data set {source.path} at {source.revision} cannot be reached ({error}); "
        "check the network and the name, log in with `hf auth login` if it is gated, or download "
        "it and use a source of kind files"
    )


KINDS = {
    "library": _open_library,
    "practice": _open_practice,
    "files": _open_files,
    "hub": _open_hub,
}


def _windows(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Yield documents in groups of bounded size."""
    window: list[Document] = []
    num_bytes = 0
    for document in documents:
        window.append(document)
        num_bytes += len(document.text)
        if num_bytes >= WINDOW_BYTES or len(window) >= WINDOW_DOCUMENTS:
            yield window
            window, num_bytes = [], 0
    if window:
        yield window


def fingerprints(config: DataConfig) -> dict[str, str]:
    """Return a digest of what each source would read: name → sha256 of its content or its pin.

    Local text is hashed byte by byte, so that changed files are noticed; a hub data set is its
    revision. Unreadable sources raise as `open_sources` does.
    """
    return {
        source.name: _fingerprint(source, f"data.sources.{number}")
        for number, source in enumerate(config.sources)
    }


def _fingerprint(source: SourceConfig, key: str) -> str:
    hasher = hashlib.sha256(source.kind.encode())
    if source.kind == "hub":
        hasher.update(f"{source.path}@{source.revision}".encode())
    elif source.kind == "files":
        root, paths = find_files(source.path or "", key)
        for path in sorted(paths):
            hasher.update(f"\0{path}\0{sha256_file(root / path)}".encode())
    else:
        for document in _library_documents():
            hasher.update(f"\0{document.path}\0".encode())
            hasher.update(document.text.encode())
    if source.kind == "practice":
        from longred.demo import skills, wording, words

        for module in (skills, wording, words):
            hasher.update(Path(str(module.__file__)).read_bytes())
    return hasher.hexdigest()
