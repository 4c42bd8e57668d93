"""The corpora that a recipe names, divided into shards."""

from collections.abc import Iterator
from typing import Any

from longred.config import DataConfig
from longred.data.decontamination import evaluation_digest
from longred.data.kinds import kind_of
from longred.data.shards import Part, Shard
from longred.errors import ConfigError


def shards_of(config: DataConfig, number: int) -> Iterator[Shard]:
    """Yield the shards of one source, each of about `data.shard_bytes`; practice never ends.

    Args:
        config: the recipe's data section.
        number: the source's position in it, from 0.

    Raises:
        ConfigError: its path does not exist, or its revision is not pinned.
        PreflightError: it cannot be reached.
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


def check_sources(config: DataConfig) -> None:
    """Refuse two sources that would read the same texts: a document would feed two buckets.

    Raises:
        ConfigError: two do.
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


def fingerprints(config: DataConfig) -> dict[str, str]:
    """Return a digest of what each source would read: name → sha256 of its content or its pin.

    Local text is hashed byte by byte, so that changed files are noticed; a hub data set is its
    revision. Texts to avoid are one more entry, `decontaminate`.

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
