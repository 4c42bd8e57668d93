"""Refuses text that cannot fill the buckets, and says which settings fit the same documents."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.config import DataConfig
from longred.data.cutting import num_pieces
from longred.data.filling import Filler
from longred.data.layout import SPLITS
from longred.data.quotas import Quota, least_num_tokens, not_enough_text, source_quotas
from longred.data.reading import Reading
from longred.data.rehearsal import rehearse
from longred.data.sources import is_local, kind_of
from longred.errors import ConfigError

# With more documents a trial takes longer than a user waits for advice.
MAX_TRIED_DOCUMENTS = 200_000
# Of fewer documents, each one counts: the numbers between two that do not fit may fit. A trial of
# so few takes milliseconds.
FEW_DOCUMENTS = 2_000
FINE_STEP, COARSE_STEP = 1.005, 1.25
PRECISION = 1.03
SMALLER_PIECE_BYTES = 2**14
# Larger text is not tokenised again, to see whether smaller pieces of it suffice.
MAX_RECUT_BYTES = 2**24

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
        fitting, remedies = _remedies(readings)
        raise not_enough_text(missing, remedies=remedies, instead=_cut_note(readings, fitting))


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
    note = _cut_note(readings, config.num_tokens)
    raise ConfigError(
        f"data.validation_fraction: {config.validation_fraction:g} of the documents are held out, "
        f"and none of them is long enough for a short block ({config.short_length} tokens); "
        f"{f'raise it to {found:g}' if found else 'raise it'} or add text"
        f"{f'. {note}' if note else ''}"
    )


def num_long_enough(reading: Reading, quota: Quota) -> int:
    """Return how many documents of a split are long enough for a bucket."""
    fraction = reading.job.config.validation_fraction
    shards = zip(reading.tables(), reading.masks, strict=True)
    return int((_lengths(shards, quota.split, fraction) >= quota.minimum).sum())


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
        if not _may_fill(mine, _lengths(shards, "train", config.validation_fraction)):
            return False
        filler = Filler(mine, config.validation_fraction)
        for shard, (table, mask) in enumerate(shards):
            filler.add(shard, table, mask)
        blocks = filler.select().blocks
        if any(q.split == "train" and blocks.get((q.split, q.bucket), 0) < q.needed for q in mine):
            return False
        selected[number] = blocks
    return _has_held_out(config, quotas, selected)


def largest_num_tokens(
    config: DataConfig, works: Callable[[DataConfig], bool], step: float = COARSE_STEP
) -> int | None:
    """Return about the largest `num_tokens`, below the present one, for which a section works.

    A larger number may work where a smaller one does not: a document feeds one bucket, drawn in
    proportion to what each still lacks, so other needs move whole documents to other buckets. So
    numbers are tried from above, one `step` after the other.

    Args:
        config: the data section.
        works: says whether a section works.
        step: factor between the numbers that are tried; the gap above the first that works is then
            halved until it is smaller than PRECISION.

    Returns:
        A number of few digits for which `works` was true; None if none was found.
    """

    def tried(num_tokens: int) -> bool:
        return works(config.model_copy(update={"num_tokens": num_tokens}))

    least, failed = least_num_tokens(config), config.num_tokens
    found = 0
    while not found and failed > least:
        number = max(least, _rounded(int(failed / step)))
        found, failed = (number, failed) if tried(number) else (0, number)
    while (
        found and failed > found * PRECISION and (middle := _rounded((found + failed) // 2)) > found
    ):
        found, failed = (middle, failed) if tried(middle) else (found, middle)
    return found or None


def most_that_fit(
    config: DataConfig,
    documents: Documents,
    settle: Callable[[DataConfig], DataConfig] = lambda changed: changed,
) -> int | None:
    """Return about the largest `num_tokens`, below the present one, that these documents fill.

    Args:
        config: the data section.
        documents: see `fills`.
        settle: sets what follows from `num_tokens` in a section.
    """
    step = FINE_STEP if _num_documents(documents) <= FEW_DOCUMENTS else COARSE_STEP
    return largest_num_tokens(config, lambda changed: fills(settle(changed), documents), step)


def _remedies(readings: Sequence[Reading]) -> tuple[int, list[str] | None]:
    """Return changes of single keys with which the same documents fill the buckets.

    None if they are too many to try. The first value is the `num_tokens`; 0 if there is none.
    """
    config, documents = readings[0].job.config, documents_of(readings)
    if _num_documents(documents) > MAX_TRIED_DOCUMENTS:
        return 0, None
    remedies = []
    fitting = most_that_fit(config, documents) or 0
    if fitting:
        remedies.append(f"data.num_tokens to {fitting}")
    lacking = {quota.bucket for reading in readings for quota in reading.shortages()}
    least = config.min_long_tokens or config.target_window // 2
    for minimum in (config.target_window // 4, config.target_window // 8):
        changed = config.model_copy(update={"min_long_tokens": minimum})
        if "long" in lacking and 0 < minimum < least and fills(changed, documents):
            remedies.append(f"data.min_long_tokens to {minimum}")
            break
    return fitting, remedies


def _cut_note(readings: Sequence[Reading], fitting: int) -> str:
    """Return a sentence on smaller pieces of text files, if they fill the buckets.

    Args:
        readings: the sources, as they are cut now.
        fitting: `num_tokens` for which no smaller pieces are needed; to lower it further for them
            would be no advice.
    """
    config = readings[0].job.config
    natural = [reading for reading in readings if reading.is_natural]
    parts = [part for reading in natural for shard in reading.shards for part in shard.parts]
    if (
        (config.piece_bytes() or 2**62) <= SMALLER_PIECE_BYTES
        or not all(is_local(reading.source) for reading in natural)
        or sum(part.num_bytes for part in parts) > MAX_RECUT_BYTES
        or all(num_pieces(p.path, p.num_bytes, SMALLER_PIECE_BYTES) == 1 for p in parts)
    ):
        return ""
    changed = config.model_copy(update={"split_bytes": SMALLER_PIECE_BYTES})
    folder = Path(readings[0].job.tokenizer_folder)
    with rehearse(changed, folder, [reading.number for reading in natural]) as rehearsal:
        documents = documents_of(rehearsal.readings)
        most = config.num_tokens
        if not fills(changed, documents):
            most = most_that_fit(changed, documents) or 0
    how = f"data.split_bytes={SMALLER_PIECE_BYTES}"
    if most == config.num_tokens:
        return (
            f"The text would suffice in more documents: try {how}, which cuts text files into "
            "smaller ones."
        )
    if most > fitting:
        return (
            f"In more documents, the text would suffice for more tokens: try {how} together with "
            f"data.num_tokens={most}."
        )
    return ""


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


def _num_documents(documents: Documents) -> int:
    return sum(len(table) for shards in documents.values() for table, _ in shards)


def _lengths(
    shards: Iterable[tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]], split: str, fraction: float
) -> npt.NDArray[np.int64]:
    """Return the tokens of each document of a split, without duplicates."""
    found = [np.zeros(0, dtype=np.int64)]
    for table, mask in shards:
        is_held_out = table["split"].astype(np.float64) / 2**64 < fraction
        found.append(table["length"][~mask & (is_held_out == (split == SPLITS[1]))])
    return np.concatenate(found)


def _may_fill(quotas: Sequence[Quota], lengths: npt.NDArray[np.int64]) -> bool:
    """Return whether documents have the tokens that training buckets need, each counted once.

    They need not fill the buckets, but most numbers that a search tries already fail here, in far
    less time than it takes to assign the documents.
    """
    total = 0
    for quota in sorted(quotas, key=lambda quota: -quota.minimum):
        if quota.split == "train":
            total += quota.needed * quota.block_length
            if quota.needed and lengths[lengths >= quota.minimum].sum() < total:
                return False
    return True


def _rounded(number: int) -> int:
    """Return a number without what follows its first three digits."""
    unit: int = 10 ** max(0, len(str(number)) - 3)
    return number // unit * unit
