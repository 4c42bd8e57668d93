"""The demo's kinds of source: the standard library, and practice for its model."""

import functools
import hashlib
import itertools
from collections.abc import Iterator

from longred.config import DataConfig, SourceConfig
from longred.data.documents import Document, Intake, document_id, is_held_out
from longred.data.shards import Part
from longred.data.sources import Kind
from longred.demo.corpus import SOURCE_NAME, library_documents
from longred.demo.skills import practice_document
from longred.errors import ConfigError, PreflightError

PRACTICE_VERSION = 1
"""Raise when `practice_document` generates other texts; a test holds the hash of some of them."""

PRACTICE_TEXTS = 256
# Practice texts are slightly longer than where they are cut, and their words are short.
PRACTICE_BYTES_PER_TOKEN = 3.4


def library_parts(config: DataConfig, source: SourceConfig, key: str) -> Iterator[Part]:
    """Yield the library's modules, in an order that depends on their paths alone."""
    modules = _modules()
    for path in sorted(modules, key=lambda path: hashlib.sha256(path.encode()).digest()):
        yield Part(path, num_bytes=len(modules[path].encode()))


def read_library(
    config: DataConfig, source: SourceConfig, parts: tuple[Part, ...], intake: Intake
) -> Iterator[Document]:
    """Yield modules as documents.

    Their ids do not depend on the source's name in the recipe, so that the split is the one that
    the demo model was trained with.
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
    """Yield parts of `PRACTICE_TEXTS` practice texts, without end.

    Raises:
        ConfigError: the source has no length.
    """
    if source.length is None:
        raise ConfigError(f"{key}.length: a source of kind practice needs a length in tokens")
    num_bytes = int(PRACTICE_TEXTS * source.length * PRACTICE_BYTES_PER_TOKEN)
    for start in itertools.count(0, PRACTICE_TEXTS):
        yield Part("practice", start, start + PRACTICE_TEXTS, num_bytes)


def read_practice(
    config: DataConfig, source: SourceConfig, parts: tuple[Part, ...], intake: Intake
) -> Iterator[Document]:
    """Yield practice texts; all their passages are from the training split."""
    length = source.length or 0
    passages = _passages(config.validation_fraction)
    for part in parts:
        for index in range(part.start, part.end):
            text = practice_document(config.seed, index, length=length, passages=passages)
            intake.take()
            yield Document(document_id(source.name, str(index)), str(index), 0, text)


def practice_fingerprint(config: DataConfig, source: SourceConfig, key: str) -> str:
    """Return a digest of the passages and of the version of the generator."""
    passages = library_fingerprint(config, source, key)
    return hashlib.sha256(f"{passages} {PRACTICE_VERSION}".encode()).hexdigest()


@functools.cache
def _modules() -> dict[str, str]:
    """Return the text of every module by path; read once per process."""
    try:
        return dict(library_documents())
    except FileNotFoundError as error:
        raise PreflightError(f"{error}; this Python lacks the source of its library") from error


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
