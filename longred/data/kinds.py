"""What a kind of source is: how it is divided, read and identified."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from longred.config import DataConfig, SourceConfig
from longred.data.documents import Document
from longred.data.intake import Intake
from longred.data.shards import Part


@dataclass(frozen=True, slots=True)
class Kind:
    """The functions of one kind of source.

    Attributes:
        parts: what the source reads, in an order that does not change; may never end. Called with
            the data section, the source's own and its dotted key.
        read: the documents of some parts; rows that cannot be used are counted.
        fingerprint: digest of the content, or of the pin, that `parts` and `read` would read.
        is_natural: whether its texts were found and not made.
        knows_sizes: whether `Part.num_bytes` says how much text there is.
        max_shard_bytes: made texts never end, so their shards are small.
    """

    parts: Callable[[DataConfig, SourceConfig, str], Iterator[Part]]
    read: Callable[[DataConfig, SourceConfig, tuple[Part, ...], Intake], Iterator[Document]]
    fingerprint: Callable[[DataConfig, SourceConfig, str], str]
    is_natural: bool = True
    knows_sizes: bool = True
    max_shard_bytes: int = 2**62


KINDS = {
    "files": "longred.data.files:FILES",
    "hub": "longred.data.hub:HUB",
    "library": "longred.demo.sources:LIBRARY",
    "practice": "longred.demo.sources:PRACTICE",
}
"""Where each kind is; imported when it is used."""


def kind_of(source: SourceConfig) -> Kind:
    """Return the kind of a source."""
    module, _, name = KINDS[source.kind].partition(":")
    kind: Kind = getattr(importlib.import_module(module), name)
    return kind
