"""What a document is: raw text with an identity that is the same on every machine."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One raw text of a source.

    Attributes:
        id: `document_id` of its source, path and offset.
        path: POSIX path relative to the source's root.
        offset: byte offset or row number in the file.
        text: the raw text.
    """

    id: str
    path: str
    offset: int
    text: str


def document_id(source: str, relative_path: str, offset: int = 0) -> str:
    """Return the sha256 hex digest that names a document.

    Args:
        source: the source's name in the recipe.
        relative_path: POSIX path relative to the source's root, so that the id does not depend on
            the machine.
        offset: byte offset or row number inside the file; 0 where a file is one document.
    """
    return hashlib.sha256(f"{source}\0{relative_path}\0{offset}".encode()).hexdigest()


def is_held_out(document: str, fraction: float) -> bool:
    """Return whether the document with this id belongs to the held-out split.

    Args:
        document: a `document_id`.
        fraction: expected share of held-out documents, in [0, 1).
    """
    return int(document[:16], 16) / 2**64 < fraction
