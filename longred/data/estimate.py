"""Says before anything is written whether the text fills the buckets.

A small local corpus is prepared in a temporary folder, so the answer is exact. A larger one is
sampled, and the sample decides how probable it is that the buckets can be filled.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longred.config import DataConfig
from longred.data.advice import (
    largest_num_tokens,
    num_long_enough,
    refuse_no_held_out,
    refuse_shortages,
)
from longred.data.cutting import count_cut
from longred.data.finding import SHOWN_NAMES, count_ignored
from longred.data.quotas import Quota, not_enough_text, source_quotas
from longred.data.reading import Reading
from longred.data.rehearsal import rehearse
from longred.data.sampling import Sample, chances, is_beyond_chance, sample_source
from longred.data.shards import Shard
from longred.data.sources import check_sources, ignored_files, is_local, kind_of, shards_of
from longred.data.tokens import TextTokenizer
from longred.errors import ConfigError

# Local text up to this size is read; with 2 MB per second and processor, that takes half a minute
# in the worst case, and usually much less, because reading ends when the buckets are full.
EXACT_BYTES = 2**26
# Limits before tokenising: fraction of the text to sample, and shards below which nothing is.
SAMPLED_FRACTION = 1 / 16
MIN_SHARDS = 3
# Advice from a sample: the amount of text for which it must hold, as a factor of the estimate.
SAFE_FACTORS = (0.75, 0.85)
FITS, TIGHT, TOO_LITTLE = "fits", "tight", "too little"


@dataclass(frozen=True, slots=True)
class BucketEstimate:
    """What one source can provide for one bucket.

    Attributes:
        bucket: which one.
        needed_tokens: the source's share of its training tokens.
        available_tokens: tokens of training documents that are long enough, whatever their bucket;
            None if texts are generated.
        at_most_tokens: the same with all that a sample may have missed; None if the size of the
            source is unknown.
        documents: number of those documents; None if texts are generated.
        filled_tokens: what its whole blocks will hold; None if the source was sampled.
        verdict: `fits` (the run will fill it), `tight` (by a sample, it may) or `too little`.
        chance: share of trials in which it was filled; 0 or 1 if the source was read.
        held_out_needed_tokens: what the held-out split should have.
        held_out_tokens: what it will have; None if the source was sampled.
        held_out_chance: as `chance`, for that; less is allowed if it is not empty.
    """

    bucket: str
    needed_tokens: int
    available_tokens: int | None
    at_most_tokens: int | None
    documents: int | None
    filled_tokens: int | None
    verdict: str
    chance: float
    held_out_needed_tokens: int
    held_out_tokens: int | None
    held_out_chance: float


@dataclass(frozen=True, slots=True)
class SourceEstimate:
    """Estimate of one source.

    Attributes:
        source: its name.
        shards: number of its shards; None if it never ends.
        num_bytes: approximate size of its text; None if it never ends.
        is_exact: whether it was read as preparing the data will read it; else it was sampled.
        sampled_shards, sampled_documents, sampled_tokens: counts of what was read.
        seen, rejected: rows read, and those that cannot be used.
        buckets: what it can provide.
        problem: message of the error that preparing the data will probably raise, if any; that of
            all sources stands at the first one concerned.
        cut_files, cut_documents: text files that are cut, and the documents cut from them.
        ignored_files, ignored_names: files that no reader takes, by suffix, and the first ones.
    """

    source: str
    shards: int | None
    num_bytes: int | None
    is_exact: bool
    sampled_shards: int
    sampled_documents: int
    sampled_tokens: int
    seen: int
    rejected: int
    buckets: list[BucketEstimate]
    problem: str | None = None
    cut_files: int = 0
    cut_documents: int = 0
    ignored_files: dict[str, int] = field(default_factory=dict)
    ignored_names: list[str] = field(default_factory=list)


def estimate(config: DataConfig, tokenizer_folder: Path) -> list[SourceEstimate]:
    """Return what each source can provide.

    Local sources of up to EXACT_BYTES in all are read as preparing the data reads them, so that
    their verdicts are exact. Others are sampled: whole documents of up to 32 shards, spread evenly
    over the source, about 4 million characters in total.

    Raises:
        ConfigError, PreflightError: as preparing the data would, except for shortages.
    """
    tokenizer = TextTokenizer(tokenizer_folder, add_bos=config.add_bos)
    quotas = source_quotas(config)
    check_sources(config)
    exact = small_sources(config)
    found: dict[int, SourceEstimate] = {}
    if exact:
        with rehearse(config, tokenizer_folder, exact) as rehearsal:
            concerned, problem = _problem(rehearsal.readings)
            for reading, num_bytes in zip(rehearsal.readings, rehearsal.text_bytes, strict=True):
                message = problem if reading is concerned else None
                found[reading.number] = _exact(reading, num_bytes, message)
    for number, source in enumerate(config.sources):
        if number not in found:
            sample = sample_source(config, number, tokenizer)
            found[number] = _sampled(config, number, quotas[source.name], sample)
    return [found[number] for number in range(len(config.sources))]


def refuse_too_little(config: DataConfig, tokenizer_folder: Path) -> list[str]:
    """Refuse text that cannot fill the buckets, as far as that can be known without a network.

    Local sources of up to EXACT_BYTES in all are read, and refused exactly if preparing the data
    would refuse them. Larger ones are refused if no sample could be that unlucky.

    Args:
        config: the recipe's data section, with windows and seed filled in.
        tokenizer_folder: Hugging Face folder of the model.

    Returns:
        The names of the sources that were not looked at, because they are not on this machine.

    Raises:
        ConfigError: too little text, too many bad rows, or a wrong source; names keys to change.
        PreflightError: a source or the tokenizer cannot be read.
    """
    tokenizer = TextTokenizer(tokenizer_folder, add_bos=config.add_bos)
    source_quotas(config)
    check_sources(config)
    exact = small_sources(config)
    if exact:
        with rehearse(config, tokenizer_folder, exact) as rehearsal:
            refuse_shortages(rehearsal.readings)
            refuse_no_held_out(rehearsal.readings)
    else:
        refuse_hopeless(config, tokenizer, only_local=True)
    return [source.name for source in config.sources if not is_local(source)]


def refuse_hopeless(
    config: DataConfig, tokenizer: TextTokenizer, *, only_local: bool = False
) -> None:
    """Refuse a corpus that cannot fill the buckets, whatever a small sample may have missed.

    Everything else passes: a corpus that may be enough, a source of fewer than MIN_SHARDS shards,
    and a source of unknown size.

    Raises:
        ConfigError: a source is too small; names all its buckets that cannot be filled.
        PreflightError: a source cannot be reached.
    """
    missing: list[str] = []
    quotas = source_quotas(config)
    for number, source in enumerate(config.sources):
        kind = kind_of(source)
        if not (kind.is_natural and kind.knows_sizes) or (only_local and not is_local(source)):
            continue
        if len(list(itertools.islice(shards_of(config, number), MIN_SHARDS))) < MIN_SHARDS:
            continue
        sample = sample_source(config, number, tokenizer, SAMPLED_FRACTION)
        if sample.num_bytes:
            missing += _hopeless(config, source.name, quotas[source.name], sample)
    if missing:
        raise not_enough_text(missing, "Nothing has been tokenised. ")


def _hopeless(config: DataConfig, name: str, quotas: Sequence[Quota], sample: Sample) -> list[str]:
    """Return which buckets of a source cannot be filled, alone or together."""
    train = [quota for quota in quotas if quota.split == "train" and quota.needed]
    by_sample = (
        f"in training documents that are long enough (by a sample of {sample.documents:,} "
        f"documents, {len(sample.lengths)} of {len(sample.shards)} shards)"
    )
    alone, together = [], []
    total = 0
    # A token fills one bucket, so the needs of buckets add up over what is long enough for them.
    for quota in sorted(train, key=lambda quota: -quota.minimum):
        needed = quota.needed * quota.block_length
        total += needed
        at_most = sample.at_most(quota.minimum)
        about = int(sample.tokens(quota.minimum) * sample.scale * (1 - config.validation_fraction))
        found = f"about {about:,} and at most {at_most:,} are {by_sample}"
        if at_most < needed:
            alone.append(
                f"the {quota.bucket} bucket needs {needed:,} tokens from source {name}, {found}"
            )
        elif at_most < total:
            together.append(
                f"buckets of documents of {quota.minimum:,} tokens or more need {total:,} tokens "
                f"together from source {name}, {found}"
            )
    return alone or together


def is_filled(config: DataConfig, quotas: Sequence[Quota], sample: Sample) -> bool:
    """Return whether documents like the sampled ones surely fill the training buckets."""
    chance = chances(config, quotas, sample, SAFE_FACTORS)
    return all(chance["train", quota.bucket] == 1 for quota in quotas)


def small_sources(config: DataConfig) -> list[int]:
    """Return the local sources of natural text if they are small enough to be read, else none."""
    numbers = [
        number
        for number, source in enumerate(config.sources)
        if kind_of(source).is_natural and is_local(source)
    ]
    total = 0
    for shard in itertools.chain.from_iterable(shards_of(config, n) for n in numbers):
        total += shard.num_bytes
        if total > EXACT_BYTES:
            return []
    return numbers


def _problem(readings: Sequence[Reading]) -> tuple[Reading, str | None]:
    """Return the message with which preparing the data would refuse, and the source it is about."""
    concerned = next((reading for reading in readings if reading.shortages()), readings[0])
    try:
        refuse_shortages(readings)
        refuse_no_held_out(readings)
    except ConfigError as error:
        return concerned, str(error)
    return concerned, None


def _exact(reading: Reading, text_bytes: int, problem: str | None) -> SourceEstimate:
    """Return what a source provides that was read as far as needed."""
    config = reading.job.config
    shards = list(shards_of(config, reading.number))
    whole = [shard for shard in reading.shards if not shard.held_out_only]
    read, stated = (sum(shard.num_bytes for shard in part) for part in (whole, shards))
    scale = stated / max(1, read)
    held_out = {q.bucket: q for q in reading.quotas if q.split == "held_out"}

    def blocks(quota: Quota) -> int:
        return reading.selection.blocks.get((quota.split, quota.bucket), 0)

    def chance(quota: Quota) -> float:
        return float(blocks(quota) >= quota.needed)

    buckets = [
        BucketEstimate(
            bucket=quota.bucket,
            needed_tokens=quota.needed * quota.block_length,
            available_tokens=int(quota.available * scale),
            at_most_tokens=quota.available if scale == 1 else None,
            documents=int(num_long_enough(reading, quota) * scale),
            filled_tokens=blocks(quota) * quota.block_length,
            verdict=FITS if chance(quota) else TOO_LITTLE,
            chance=chance(quota),
            held_out_needed_tokens=held_out[quota.bucket].needed * quota.block_length,
            held_out_tokens=blocks(held_out[quota.bucket]) * quota.block_length,
            held_out_chance=chance(held_out[quota.bucket]),
        )
        for quota in reading.quotas
        if quota.split == "train" and quota.needed
    ]
    return SourceEstimate(
        source=reading.source.name,
        shards=len(shards),
        num_bytes=int(text_bytes * scale),
        is_exact=True,
        sampled_shards=len(reading.shards),
        sampled_documents=sum(record.documents for record in reading.records),
        sampled_tokens=sum(record.read_tokens for record in reading.records),
        seen=sum(record.seen for record in reading.records),
        rejected=sum(sum(record.rejected.values()) for record in reading.records),
        buckets=buckets,
        problem=problem,
        **_files(config, reading.number, shards),
    )


def _sampled(
    config: DataConfig, number: int, quotas: Sequence[Quota], sample: Sample
) -> SourceEstimate:
    """Return what a source can probably provide, by a sample of it."""
    kind = kind_of(config.sources[number])
    chance = chances(config, quotas, sample) if kind.is_natural else {}
    held_out = {quota.bucket: quota for quota in quotas if quota.split == "held_out"}
    scale = sample.scale * (1 - config.validation_fraction)
    is_bounded = kind.is_natural and kind.knows_sizes and sample.num_bytes
    buckets = []
    for quota in quotas:
        if quota.split == "train" and quota.needed:
            filled = chance.get(("train", quota.bucket), 1.0)
            buckets.append(
                BucketEstimate(
                    bucket=quota.bucket,
                    needed_tokens=quota.needed * quota.block_length,
                    available_tokens=(
                        int(sample.tokens(quota.minimum) * scale) if kind.is_natural else None
                    ),
                    at_most_tokens=sample.at_most(quota.minimum) if is_bounded else None,
                    documents=int(sample.count(quota.minimum) * scale) if kind.is_natural else None,
                    filled_tokens=None,
                    verdict=FITS if filled == 1 else TIGHT if filled else TOO_LITTLE,
                    chance=filled,
                    held_out_needed_tokens=held_out[quota.bucket].needed * quota.block_length,
                    held_out_tokens=None,
                    held_out_chance=chance.get(("held_out", quota.bucket), 1.0),
                )
            )
    return SourceEstimate(
        source=config.sources[number].name,
        shards=len(sample.shards) if kind.is_natural else None,
        num_bytes=sample.total_bytes if kind.is_natural else None,
        is_exact=not kind.is_natural,
        sampled_shards=len(sample.lengths),
        sampled_documents=sample.documents,
        sampled_tokens=sample.tokens(),
        seen=sample.intake.seen,
        rejected=sample.intake.rejected.total(),
        buckets=buckets,
        problem=_sampled_problem(config, number, buckets, sample),
        **_files(config, number, sample.shards),
    )


def _sampled_problem(
    config: DataConfig, number: int, buckets: Sequence[BucketEstimate], sample: Sample
) -> str | None:
    """Return what preparing the data will probably say of a sampled source."""
    name = config.sources[number].name
    bad = sample.intake.rejected.total() - sample.intake.rejected["empty"]
    if is_beyond_chance(bad, config.max_rejected_fraction * sample.intake.seen):
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sample.intake.rejected.items())
        return (
            f"data.max_rejected_fraction: {bad:,} of {sample.intake.seen:,} sampled rows of source "
            f"{name} cannot be used ({reasons}), more than {config.max_rejected_fraction:g}"
        )
    missing = [
        f"the {found.bucket} bucket needs {found.needed_tokens:,} tokens from source {name}, about "
        f"{found.available_tokens:,} are in {found.documents:,} training documents that are long "
        "enough, and a document feeds one bucket"
        for found in buckets
        if found.verdict == TOO_LITTLE
    ]
    if not missing:
        return None

    def works(changed: DataConfig) -> bool:
        return is_filled(changed, source_quotas(changed)[name], sample)

    fitting = largest_num_tokens(config, works)
    remedies = [f"data.num_tokens to {fitting}"] if fitting else None
    return str(not_enough_text(missing, "By a sample: ", remedies))


def _files(config: DataConfig, number: int, shards: Sequence[Shard]) -> dict[str, Any]:
    """Return which files of a source are cut and which no reader takes."""
    parts = (part for shard in shards for part in shard.parts)
    cut_files, cut_documents = count_cut(parts, config.piece_bytes())
    ignored = ignored_files(config.sources[number])
    return {
        "cut_files": cut_files,
        "cut_documents": cut_documents,
        "ignored_files": count_ignored(ignored),
        "ignored_names": sorted(ignored)[:SHOWN_NAMES],
    }


def to_json(estimates: Sequence[SourceEstimate]) -> list[dict[str, Any]]:
    """Return estimates as JSON values."""
    return [asdict(found) for found in estimates]
