"""Chooses the text of a first recipe, and how many tokens it gives."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from longred.cli.recipe_text import Entry
from longred.config import DataConfig, RunConfig, SourceConfig, load_recipe
from longred.config.data import BYTES_PER_TOKEN
from longred.config.derived import MIN_STEPS
from longred.errors import ConfigError

CORPORA = "llama3-8b-32k"
"""The packaged recipe whose corpora a recipe without own text reads, and whose size it takes."""

ENOUGH_BLOCKS = 4 * MIN_STEPS
"""Long blocks of a text that is used as it is; from a shorter one, all that it gives is taken."""

MORE_HELD_OUT = (0.2, 0.4)
"""Shares of held-out documents that are tried for a text of few documents."""

FOR_SHORT_TEXT = {
    "validation_fraction": "of the documents are held out; usually 0.1, but here they are few",
    "split_bytes": "of a document cut from a text file; less than usual, since the text is short",
}
"""Key of the data section that is changed for a short text → comment."""


def public_corpora() -> Iterator[Entry]:
    """Yield the corpora of the paper's recipe and what is read of them."""
    corpora = load_recipe(CORPORA).data
    public = [_in_order(source) for source in corpora.sources]
    yield Entry("data.sources", public, "public corpora from the hub, by pinned revision")
    for key in ("num_tokens", "validation_fraction", "num_held_out_tokens"):
        yield Entry(f"data.{key}", getattr(corpora, key))


def own_text(config: RunConfig, texts: Sequence[str], tokenizer: Path) -> Iterator[Entry]:
    """Yield the settings with which own text gives the most training tokens.

    Args:
        config: windows and sizes; its sources are not read.
        texts: files or folders.
        tokenizer: the model's folder.

    Raises:
        ConfigError: the text cannot fill the buckets once.
    """
    from longred.data.sources import shards_of

    sources: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        name = "text" if len(texts) == 1 else f"text-{number}"
        path = text if "://" in text else str(Path(text).expanduser().resolve())
        sources.append({"name": name, "kind": "files", "path": path})
    data = DataConfig.model_validate({**config.data.model_dump(), "sources": sources})
    if len(sources) > 1:
        # The smallest text would otherwise limit what is read of all.
        sizes = [sum(s.num_bytes for s in shards_of(data, n)) for n in range(len(sources))]
        for source, size in zip(sources, sizes, strict=True):
            source["weight"] = max(0.001, round(size / max(1, *sizes), 3))
        data = DataConfig.model_validate({**data.model_dump(), "sources": sources})
    yield Entry("data.sources", sources, "txt, md, py, jsonl(.gz, .zst) and parquet files")
    changes, most = _capacity(data, tokenizer)
    for key, value in changes.items():
        yield Entry(f"data.{key}", value, FOR_SHORT_TEXT[key])
    data = data.model_copy(update=changes)
    # Less is not always filled too: which bucket a document feeds depends on what they need.
    yield Entry("data.num_tokens", most, "about the most with which the text fills all buckets")
    held_out = _settled(data.model_copy(update={"num_tokens": most})).num_held_out_tokens
    if held_out != data.num_held_out_tokens:
        yield Entry("data.num_held_out_tokens", held_out, "in each bucket; the text is short")
    if held_out < config.profiling.num_tokens:
        yield Entry("profiling.num_tokens", held_out, "all that is held out in a bucket")
    if held_out < config.evaluation.similarity_tokens:
        yield Entry("evaluation.similarity_tokens", held_out, "all that is held out in a bucket")


def _in_order(source: SourceConfig) -> dict[str, Any]:
    """Return the settings of a source that are not defaults, in the order of its fields."""
    given = source.model_dump(exclude_defaults=True)
    return {name: given[name] for name in SourceConfig.model_fields if name in given}


def _settled(data: DataConfig) -> DataConfig:
    """Return the section with the held-out tokens that suit its training tokens."""
    # A quarter of the held-out text, which is divided over three buckets.
    share = int(data.num_tokens * data.validation_fraction) // 4
    held_out = min(data.num_held_out_tokens, max(data.target_window, share))
    return data.model_copy(update={"num_held_out_tokens": held_out})


def _capacity(data: DataConfig, folder: Path) -> tuple[dict[str, Any], int]:
    """Return the changes that get the most training tokens out of a short text, and their number.

    Nothing is changed for a text that is long enough as it is.

    Raises:
        ConfigError: it cannot fill the buckets once, whatever is changed.
    """
    from longred.data.advice import SMALLER_PIECE_BYTES
    from longred.data.capacity import most_tokens

    pieces: list[dict[str, Any]] = [{}]
    if data.target_window <= SMALLER_PIECE_BYTES // BYTES_PER_TOKEN:
        pieces.append({"split_bytes": SMALLER_PIECE_BYTES})
    found: list[tuple[int, dict[str, Any]]] = []
    refusals = []
    for piece in pieces:
        more = ({**piece, "validation_fraction": fraction} for fraction in MORE_HELD_OUT)
        for changes in (piece, *more):
            try:
                changed = data.model_copy(update=changes)
                found.append((most_tokens(changed, folder, _settled), changes))
                break
            except ConfigError as error:
                refusals.append(error)
        if found and found[-1][0] >= ENOUGH_BLOCKS * data.target_window:
            break
    if not found:
        raise refusals[0]
    most, changes = max(found, key=lambda one: one[0])
    return changes, most
