"""Refuses text that cannot fill the buckets, and says which settings fit the same documents."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.config import DataConfig
from longred.data.cutting import num_pieces
from longred.data.filling import Filler
from longred.data.layout import SPLITS
from longred.data.quotas import Quota, block_lengths, not_enough_text, source_quotas
from longred.data.reading import Reading
from longred.data.sources import kind_of
from longred.errors import ConfigError
from longred.method.methods import BUCKETS

# With more documents a trial takes longer than a user waits for advice.
MAX_TRIED_DOCUMENTS = 200_000
BISECTIONS = 10
PRECISION = 1.03
SMALLER_PIECE_BYTES = 2**14

Documents = Mapping[int, Sequence[tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]]]
"""Number of a source → for each of its shards, the table and the mask of duplicates."""


def refuse_shortages(readings: Sequence[Reading]) -> None:
    """Raise a ConfigError that names every training bucket with too little text, and a remedy."""
    missing = []
    for reading in readings:
        for quota in reading.shortages():
            blocks = reading.selection.blocks[quota.split, quota.bucket]
            missing.append(
                f"the {quota.bucket} bucket needs {quota.needed * quota.block_length:,} tokens "
                f"from source {reading.source.name}, {blocks * quota.block_length:,} could be "
                f"filled ({quota.available:,} tokens are in {num_long_enough(reading, quota):,} "
                f"documents of {quota.minimum:,} or more, and a document feeds one bucket)"
            )
    if missing:
        raise not_enough_text(missing, _cut_note(readings), _remedies(readings))


def refuse_no_held_out(readings: Sequence[Reading]) -> None:
    """Raise a ConfigError if no held-out document is long enough for a short block.

    A source that is not among the readings is taken to have one, if it feeds that bucket.
    """
    config = readings[0].job.config
    blocks = {reading.number: reading.selection.blocks for reading in readings}
    if _has_held_out(config, source_quotas(config), blocks):
        return
    documents = documents_of(readings)
    tried = (
        fraction
        for fraction in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
        if fraction > config.validation_fraction
        and fills(config.model_copy(update={"validation_fraction": fraction}), documents)
    )
    found = next(tried, None)
    note = _cut_note(readings)
    raise ConfigError(
        f"data.validation_fraction: {config.validation_fraction:g} of the documents are held out, "
        f"and none of them is long enough for a short block ({config.short_length} tokens); "
        f"{f'raise it to {found:g}' if found else 'raise it'} or add text"
        f"{f'. {note.rstrip()}' if note else ''}"
    )


def num_long_enough(reading: Reading, quota: Quota) -> int:
    """Return how many documents of a split are long enough for a bucket."""
    fraction = reading.job.config.validation_fraction
    count = 0
    for table, mask in zip(reading.tables(), reading.masks, strict=True):
        is_held_out = table["split"].astype(np.float64) / 2**64 < fraction
        in_split = is_held_out == (quota.split == SPLITS[1])
        count += int((~mask & in_split & (table["length"] >= quota.minimum)).sum())
    return count


def fills(config: DataConfig, documents: Documents) -> bool:
    """Return whether these documents fill the buckets of a data section, as preparing would.

    Sources that are not among the documents are taken to suffice.
    """
    try:
        quotas = source_quotas(config)
    except ConfigError:
        return False
    selected = {}
    for number, shards in documents.items():
        mine = quotas[config.sources[number].name]
        filler = Filler(mine, config.validation_fraction)
        for shard, (table, mask) in enumerate(shards):
            filler.add(shard, table, mask)
        blocks = filler.select().blocks
        if any(q.split == "train" and blocks.get((q.split, q.bucket), 0) < q.needed for q in mine):
            return False
        selected[number] = blocks
    return _has_held_out(config, quotas, selected)


def least_num_tokens(config: DataConfig) -> int:
    """Return the smallest `num_tokens` that gives every bucket a whole block."""
    total, lengths = sum(config.ratio.values()), block_lengths(config)
    return max(-(-lengths[bucket] * total // config.ratio[bucket]) for bucket in BUCKETS)  # type: ignore[index]


def largest_num_tokens(config: DataConfig, works: Callable[[DataConfig], bool]) -> int | None:
    """Return about the largest `num_tokens`, below the present one, for which a section works.

    Args:
        config: the data section.
        works: says whether a section works.

    Returns:
        A number of few digits for which `works` was true; None if none was found.
    """

    def tried(num_tokens: int) -> bool:
        return works(config.model_copy(update={"num_tokens": num_tokens}))

    low, high = least_num_tokens(config), config.num_tokens
    if low >= high or not tried(low):
        return None
    for _ in range(BISECTIONS):
        middle = math.isqrt(low * high)
        if high < low * PRECISION:
            break
        low, high = (middle, high) if tried(middle) else (low, middle)
    rounded = [low // 10**digits * 10**digits for digits in (len(str(low)) - 2, len(str(low)) - 3)]
    return next((number for number in rounded if number > 0 and tried(number)), low)


def _remedies(readings: Sequence[Reading]) -> list[str]:
    """Return changes of single keys with which the same documents fill the buckets."""
    config, documents = readings[0].job.config, documents_of(readings)
    if sum(len(table) for shards in documents.values() for table, _ in shards) > (
        MAX_TRIED_DOCUMENTS
    ):
        return []
    remedies = []
    found = largest_num_tokens(config, lambda changed: fills(changed, documents))
    if found:
        remedies.append(f"data.num_tokens to {found}")
    lacking = {quota.bucket for reading in readings for quota in reading.shortages()}
    least = config.min_long_tokens or config.target_window // 2
    for minimum in (config.target_window // 4, config.target_window // 8):
        changed = config.model_copy(update={"min_long_tokens": minimum})
        if "long" in lacking and 0 < minimum < least and fills(changed, documents):
            remedies.append(f"data.min_long_tokens to {minimum}")
            break
    return remedies


def _cut_note(readings: Sequence[Reading]) -> str:
    """Return a sentence on text files that smaller pieces would cut, if documents are lacking."""
    config = readings[0].job.config
    piece = config.piece_bytes()
    train = [quota for reading in readings for quota in reading.quotas if quota.split == "train"]
    needed = sum(quota.needed * quota.block_length for quota in train)
    found = sum(max(q.available for q in r.quotas if q.split == "train") for r in readings)
    parts = [part for reading in readings for shard in reading.shards for part in shard.parts]
    can_cut = any(num_pieces(part.path, part.num_bytes, SMALLER_PIECE_BYTES) > 1 for part in parts)
    if found < needed or not can_cut or (piece or 2**62) <= SMALLER_PIECE_BYTES:
        return ""
    return (
        f"The text would suffice in more documents: try data.split_bytes={SMALLER_PIECE_BYTES}, "
        "which cuts text files into smaller ones. "
    )


def documents_of(readings: Sequence[Reading]) -> Documents:
    """Return what `fills` needs to know of sources that were read."""
    return {
        reading.number: list(zip(reading.tables(), reading.masks, strict=True))
        for reading in readings
        if reading.is_natural
    }


def _has_held_out(
    config: DataConfig,
    quotas: Mapping[str, Sequence[Quota]],
    blocks: Mapping[int, Mapping[tuple[str, str], int]],
) -> bool:
    """Return whether a short block is held out.

    Args:
        config: the data section.
        quotas: name of a source → its quotas.
        blocks: number of a source that was read → the blocks it gives. Others are taken to suffice,
            and so are generated texts, which never end.
    """
    key = ("held_out", "short")
    suffices = any(
        quota.needed and (quota.split, quota.bucket) == key
        for number, source in enumerate(config.sources)
        if number not in blocks or not kind_of(source).is_natural
        for quota in quotas[source.name]
    )
    return suffices or any(found.get(key, 0) for found in blocks.values())
