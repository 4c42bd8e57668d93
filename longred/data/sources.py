"""The kinds of source, and the sources of a recipe divided into shards."""

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from longred.config import DataConfig, SourceConfig
from longred.data import files, hub
from longred.data.decontamination import evaluation_digest
from longred.data.documents import Document, Intake
from longred.data.finding import find_files, locate
from longred.data.shards import Part, Shard
from longred.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Kind:
    """The functions of one kind of source.

    Attributes:
        parts: yields the parts of a source in a fixed order, possibly without end. Called with the
            data section, the source's section and its dotted key.
        read: yields the documents of some parts and counts the rows it rejects.
        fingerprint: returns a digest of the content, or of the pinned revision, to be read.
        is_natural: False if the texts are generated; these never end.
        knows_sizes: whether `Part.num_bytes` is a real size.
        max_shard_bytes: upper limit of the shard size, below `data.shard_bytes`.
    """

    parts: Callable[[DataConfig, SourceConfig, str], Iterator[Part]]
    read: Callable[[DataConfig, SourceConfig, tuple[Part, ...], Intake], Iterator[Document]]
    fingerprint: Callable[[DataConfig, SourceConfig, str], str]
    is_natural: bool = True
    knows_sizes: bool = True
    max_shard_bytes: int = 2**62


KINDS = {
    "files": Kind(files.parts, files.read, files.fingerprint),
    "hub": Kind(hub.parts, hub.read, hub.fingerprint, knows_sizes=False),
}
DEMO_KINDS = {
    "library": "longred.demo.sources:LIBRARY",
    "practice": "longred.demo.sources:PRACTICE",
}
"""Resolved at run time, because the demo imports this package and not the reverse."""


def kind_of(source: SourceConfig) -> Kind:
    """Return the kind of a source."""
    if source.kind in KINDS:
        return KINDS[source.kind]
    return pkgutil.resolve_name(DEMO_KINDS[source.kind])  # type: ignore[no-any-return]


def shards_of(config: DataConfig, number: int) -> Iterator[Shard]:
    """Yield the shards of one source, each of about `data.shard_bytes`; without end for practice.

    Args:
        config: the recipe's data section.
        number: index of the source in `data.sources`.

    Raises:
        ConfigError: the path does not exist, or the revision is not pinned.
        PreflightError: the source cannot be reached.
    """
    source = config.sources[number]
    kind = kind_of(source)
    limit = min(config.shard_bytes, kind.max_shard_bytes)
    held: list[Part] = []
    num_bytes, count = 0, 0
    for part in kind.parts(config, source, f"data.sources.{number}"):
        if held and num_bytes + part.num_bytes > limit:
            yield Shard(number, source.name, count, tuple(held))
            held, num_bytes, count = [], 0, count + 1
        held.append(part)
        num_bytes += part.num_bytes
    if held:
        yield Shard(number, source.name, count, tuple(held))


def is_local(source: SourceConfig) -> bool:
    """Return whether a source can be read without a network."""
    if source.kind == "files":
        return "file" in locate(source.path or "", f"data.sources ({source.name})")[0].protocol
    return source.kind != "hub"


def ignored_files(source: SourceConfig) -> dict[str, str]:
    """Return the files of a source that no reader takes, as `Files.ignored`."""
    return find_files(source.path or "", source.name).ignored if source.kind == "files" else {}


def check_sources(config: DataConfig) -> None:
    """Refuse two sources that read the same texts: a document would feed two buckets.

    Raises:
        ConfigError: two sources read the same texts.
    """
    seen: dict[tuple[Any, ...], str] = {}
    for source in config.sources:
        identity: tuple[Any, ...] = (source.kind,)
        if source.kind != "library":
            identity += (source.path, source.subset, source.split, source.length)
        if identity in seen:
            raise ConfigError(
                f"data.sources: {seen[identity]} and {source.name} read the same texts; "
                "merge them into one source with the shares of both"
            )
        seen[identity] = source.name


def fingerprints(config: DataConfig) -> dict[str, str]:
    """Return the sha256 of the content of each source, by name.

    Local text is hashed byte by byte, so that changed files are noticed, also those of a local copy
    of a Hugging Face dataset; one on the hub is identified by its revision. The texts of
    `data.decontaminate` are one more entry.

    Raises:
        ConfigError, PreflightError: a source cannot be read.
    """
    found = {
        source.name: kind_of(source).fingerprint(config, source, f"data.sources.{number}")
        for number, source in enumerate(config.sources)
    }
    if config.decontaminate:
        found["decontaminate:"] = evaluation_digest(config)
    return found
