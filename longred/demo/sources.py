"""The demo's own kinds of source: the standard library, and practice made for its model."""

import functools
import hashlib
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path

from longred.config import DataConfig, SourceConfig
from longred.data.documents import Document, Intake, document_id, is_held_out
from longred.data.shards import Part
from longred.data.sources import Kind
from longred.demo import skills, wording
from longred.demo.corpus import SOURCE_NAME, library_documents
from longred.errors import ConfigError, PreflightError
from longred.evaluation.short import keys
from longred.evaluation.short.key_recall import key_recall

PRACTICE_TEXTS = 256
# A practice text is made a little longer than it is cut, and its words are short.
PRACTICE_BYTES_PER_TOKEN = 3.4


def library_parts(config: DataConfig, source: SourceConfig, key: str) -> Iterator[Part]:
    """Yield the library's modules in an order that only depends on their names."""
    modules = _modules()
    for path in sorted(modules, key=lambda path: hashlib.sha256(path.encode()).digest()):
        yield Part(path, num_bytes=len(modules[path].encode()))


def read_library(
    config: DataConfig, source: SourceConfig, parts: tuple[Part, ...], intake: Intake
) -> Iterator[Document]:
    """Yield modules as documents.

    Ids do not depend on the source's name in the recipe: they must agree with the split that the
    demo model was trained on.
    """
    modules = _modules()
    for part in parts:
        intake.take()
        yield Document(document_id(SOURCE_NAME, part.path), part.path, 0, modules[part.path])


def library_fingerprint(config: DataConfig, source: SourceConfig, key: str) -> str:
    """Return a digest of every module's name and text."""
    hasher = hashlib.sha256()
    for path, text in _modules().items():
        hasher.update(f"\0{path}\0{text}".encode())
    return hasher.hexdigest()


def practice_parts(config: DataConfig, source: SourceConfig, key: str) -> Iterator[Part]:
    """Yield runs of exercises, without end.

    Raises:
        ConfigError: the source has no length.
    """
    length = source.length
    if length is None:
        raise ConfigError(f"{key}.length: a source of kind practice needs a length in tokens")
    num_bytes = int(PRACTICE_TEXTS * length * PRACTICE_BYTES_PER_TOKEN)
    for start in itertools.count(0, PRACTICE_TEXTS):
        yield Part("practice", start, start + PRACTICE_TEXTS, num_bytes)


def read_practice(
    config: DataConfig, source: SourceConfig, parts: tuple[Part, ...], intake: Intake
) -> Iterator[Document]:
    """Yield exercises; only passages of the training split stand in them."""
    length = source.length or 0
    passages = _passages(config.validation_fraction)
    for part in parts:
        for index in range(part.start, part.end):
            text = skills.practice_document(config.seed, index, length=length, passages=passages)
            intake.take()
            yield Document(document_id(source.name, str(index)), str(index), 0, text)


def practice_fingerprint(config: DataConfig, source: SourceConfig, key: str) -> str:
    """Return a digest of the passages and of the code that makes exercises of them."""
    hasher = hashlib.sha256(library_fingerprint(config, source, key).encode())
    for made_by in (skills, wording, keys, key_recall):
        hasher.update(Path(inspect.getfile(made_by)).read_bytes())
    return hasher.hexdigest()


@functools.cache
def _modules() -> dict[str, str]:
    """Return path and text of every module; read once a process."""
    try:
        return dict(library_documents())
    except FileNotFoundError as error:
        raise PreflightError(f"{error}; this Python has no source of its library") from error


@functools.cache
def _passages(validation_fraction: float) -> list[str]:
    return [
        text
        for path, text in _modules().items()
        if not is_held_out(document_id(SOURCE_NAME, path), validation_fraction)
    ]


LIBRARY = Kind(parts=library_parts, read=read_library, fingerprint=library_fingerprint)
PRACTICE = Kind(
    parts=practice_parts,
    read=read_practice,
    fingerprint=practice_fingerprint,
    is_natural=False,
    max_shard_bytes=2**19,
)
