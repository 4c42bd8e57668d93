"""Reads rows of tokens for `longred drift` from text files, a data artifact or the library."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longred.errors import ConfigError

if TYPE_CHECKING:
    from longred.data.tokens import TextTokenizer

log = logging.getLogger(__name__)

MAX_ROWS_OF_A_DOCUMENT = 4
"""Limit, so that a few long documents do not dominate the rows."""

LIBRARY = "library"
INDEX = "index.json"


def read_text_rows(
    data: str, tokenizer: "TextTokenizer", *, length: int, num_tokens: int
) -> Tensor:
    """Return rows of tokens, int64[N, T]; each row lies within one document.

    Args:
        data: `library` (standard library modules held out from the demo model's training); a file,
            folder or glob of txt, md, py, jsonl(.gz) or parquet; or the folder of a data artifact,
            whose held-out short blocks are returned unchanged.
        tokenizer: the models' tokenizer, with add_bos=False.
        length: T, tokens per row; ignored for a data artifact.
        num_tokens: maximum number of tokens; at least one row is returned.

    Raises:
        ConfigError: the text does not exist, or no document is long enough.
        MismatchError: the data artifact has no held-out short blocks.
    """
    if (Path(data) / INDEX).is_file():
        from longred.data.loader import read_rows

        return read_rows(Path(data), "short", split="held_out", num_tokens=num_tokens)
    wanted = max(1, num_tokens // length)
    rows: list[list[int]] = []
    for text in _texts(data, length):
        rows += _rows(text, tokenizer, length)
        if len(rows) >= wanted:
            break
    if not rows:
        raise ConfigError(
            f"--data: no document in {data} has {length} tokens; give longer texts or a smaller "
            "--length"
        )
    if len(rows) < wanted:
        log.warning("%s: %d rows requested, continuing with %d", data, wanted, len(rows))
    return torch.tensor(rows[:wanted], dtype=torch.int64)


def _texts(data: str, length: int) -> Iterator[str]:
    if data == LIBRARY:
        from longred.demo.corpus import held_out_documents

        documents = sorted(
            held_out_documents(), key=lambda found: hashlib.sha256(found[0].encode()).digest()
        )
        yield from (text for _, text in documents)
        return
    from longred.config import DataConfig
    from longred.config.data import SourceConfig
    from longred.data.documents import Intake
    from longred.data.files import parts, read

    source = SourceConfig(name="data", kind="files", path=data)
    config = DataConfig(sources=[source], num_tokens=1, target_window=length)
    intake = Intake(source.name, config.max_document_characters)
    for part in parts(config, source, "--data"):
        for document in read(config, source, (part,), intake):
            yield document.text
    if intake.rejected:
        log.warning("%s: skipped unusable documents: %s", data, intake.rejected)


def _rows(text: str, tokenizer: "TextTokenizer", length: int) -> list[list[int]]:
    """Cut a text into full rows; prepend BOS to each if the tokenizer adds it."""
    start = tokenizer.leading_ids()
    size = length - len(start)
    # No token is longer than 32 characters, so this prefix is enough.
    (ids,) = tokenizer.encode([text[: MAX_ROWS_OF_A_DOCUMENT * length * 32]])
    tokens = ids[: MAX_ROWS_OF_A_DOCUMENT * size].tolist()
    return [start + tokens[i : i + size] for i in range(0, len(tokens) - size + 1, size)]
