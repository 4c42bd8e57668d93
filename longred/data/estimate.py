"""Estimates from a sample how many tokens each source can provide; writes nothing."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.config import DataConfig
from longred.data.documents import Intake
from longred.data.files import COMPRESSED_SUFFIXES
from longred.data.quotas import Quota, not_enough_text, source_quotas
from longred.data.shards import Part, Shard
from longred.data.sources import check_sources, kind_of, shards_of
from longred.data.tokens import TextTokenizer

SAMPLED_SHARDS = 32
SAMPLED_CHARACTERS = 2**22
# Limits before tokenising: fraction of the text to sample, and shards below which nothing is.
SAMPLED_FRACTION = 1 / 16
MIN_SHARDS = 3
# Upper bounds: standard deviations, documents that chance may have hidden, and -log(1 %).
DEVIATIONS = 3.0
HIDDEN_DOCUMENTS = 7
UNSEEN = 4.6
# Compressed text may exceed the size from `files.EXPANSION` or a parquet file by this factor.
MAX_EXPANSION = 4


@dataclass(frozen=True, slots=True)
class BucketEstimate:
    """What one source can probably provide for one bucket of the training split.

    Attributes:
        bucket: which one.
        needed_tokens: the source's share of it.
        available_tokens: tokens in documents that are long enough; None if texts are generated.
        at_most_tokens: the same with all that the sample may have missed; None if the size of the
            source is unknown.
        verdict: `fits`, `tight` (less than twice the need: a document feeds one bucket) or `short`.
    """

    bucket: str
    needed_tokens: int
    available_tokens: int | None
    at_most_tokens: int | None
    verdict: str


@dataclass(frozen=True, slots=True)
class SourceEstimate:
    """Estimate of one source.

    Attributes:
        source: its name.
        shards: number of its shards; None if it never ends.
        num_bytes: approximate size of its text; None if it never ends.
        sampled_shards, sampled_documents, sampled_tokens, rejected: counts of the sample.
        buckets: what it can provide.
    """

    source: str
    shards: int | None
    num_bytes: int | None
    sampled_shards: int
    sampled_documents: int
    sampled_tokens: int
    rejected: int
    buckets: list[BucketEstimate]


@dataclass(slots=True)
class _Sample:
    """The sampled part of a source.

    Attributes:
        intake: counts of its rows.
        lengths: tokens of each document, one array per shard.
        num_bytes: size of its text.
        complete_bytes, stated_bytes: real and stated size of the shards that were read completely.
    """

    intake: Intake
    lengths: list[npt.NDArray[np.int64]]
    num_bytes: int = 0
    complete_bytes: int = 0
    stated_bytes: int = 0

    def tokens(self, minimum: int = 0) -> int:
        """Return the tokens of documents of at least `minimum` tokens."""
        return sum(int(lengths[lengths >= minimum].sum()) for lengths in self.lengths)

    def at_most(self, minimum: int, total: int) -> float:
        """Return an upper bound of such tokens in `total` bytes of text.

        It allows for three things: variance over documents and over shards; rare documents that the
        sample missed by chance; and unsampled regions that contain only such documents.
        """
        found = [lengths[lengths >= minimum] for lengths in self.lengths]
        per_shard = np.array([lengths.sum() for lengths in found], dtype=np.float64)
        squares = sum(float((lengths.astype(np.float64) ** 2).sum()) for lengths in found)
        spread = np.sqrt(squares + float(((per_shard - per_shard.mean()) ** 2).sum()))
        sampled = float(per_shard.sum() + DEVIATIONS * spread + HIDDEN_DOCUMENTS * minimum)
        unlike = max(0, total - self.num_bytes) * min(1.0, UNSEEN / len(found))
        return sampled * total / self.num_bytes + self.tokens() * unlike / self.num_bytes


def estimate(config: DataConfig, tokenizer_folder: Path) -> list[SourceEstimate]:
    """Return what each source can probably provide, from a sample of it.

    The sample consists of the first whole documents of up to SAMPLED_SHARDS shards, spread evenly
    over the source, about SAMPLED_CHARACTERS in total.

    Raises:
        ConfigError, PreflightError: as preparing the data would.
    """
    tokenizer = TextTokenizer(tokenizer_folder, add_bos=config.add_bos)
    quotas = source_quotas(config)
    check_sources(config)
    return [
        _estimate(config, number, quotas[source.name], tokenizer)
        for number, source in enumerate(config.sources)
    ]


def refuse_hopeless(config: DataConfig, tokenizer: TextTokenizer) -> None:
    """Refuse a corpus that cannot fill a bucket, whatever a small sample of it may have missed.

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
        if not (kind.is_natural and kind.knows_sizes):
            continue
        if len(list(itertools.islice(shards_of(config, number), MIN_SHARDS))) < MIN_SHARDS:
            continue
        found = _estimate(config, number, quotas[source.name], tokenizer, SAMPLED_FRACTION)
        missing += [
            f"the {bucket.bucket} bucket needs {bucket.needed_tokens:,} tokens from source "
            f"{source.name}, about {bucket.available_tokens:,} and at most "
            f"{bucket.at_most_tokens:,} are in training documents that are long enough (by a "
            f"sample of {found.sampled_documents:,} documents, {found.sampled_shards} of "
            f"{found.shards} shards)"
            for bucket in found.buckets
            if bucket.at_most_tokens is not None and bucket.at_most_tokens < bucket.needed_tokens
        ]
    if missing:
        raise not_enough_text(missing, "Nothing has been tokenised. ")


def _estimate(
    config: DataConfig,
    number: int,
    quotas: Sequence[Quota],
    tokenizer: TextTokenizer,
    fraction: float | None = None,
) -> SourceEstimate:
    """Return the estimate of one source; `fraction` limits the share of its text to sample."""
    kind = kind_of(config.sources[number])
    shards = list(itertools.islice(shards_of(config, number), None if kind.is_natural else 1))
    stated = sum(shard.num_bytes for shard in shards)
    characters = SAMPLED_CHARACTERS
    if fraction is not None:
        characters = min(characters, int(stated * fraction))
    sample = _sample(config, number, shards, tokenizer, characters)
    corrected = stated
    if sample.stated_bytes:
        corrected = stated * sample.complete_bytes // sample.stated_bytes
    total = max(sample.num_bytes, corrected)
    scale = total / max(1, sample.num_bytes) * (1 - config.validation_fraction)
    largest = max(total, sum(_max_bytes(part) for shard in shards for part in shard.parts))
    is_bounded = kind.is_natural and kind.knows_sizes and sample.num_bytes
    buckets = []
    for quota in quotas:
        if quota.split == "train" and quota.needed:
            needed = quota.needed * quota.block_length
            available = int(sample.tokens(quota.minimum) * scale) if kind.is_natural else None
            at_most = int(sample.at_most(quota.minimum, largest)) if is_bounded else None
            if available is None or available >= 2 * needed:
                verdict = "fits"
            else:
                verdict = "tight" if available >= needed else "short"
            buckets.append(BucketEstimate(quota.bucket, needed, available, at_most, verdict))
    return SourceEstimate(
        source=config.sources[number].name,
        shards=len(shards) if kind.is_natural else None,
        num_bytes=total if kind.is_natural else None,
        sampled_shards=len(sample.lengths),
        sampled_documents=sum(map(len, sample.lengths)),
        sampled_tokens=sample.tokens(),
        rejected=sample.intake.rejected.total(),
        buckets=buckets,
    )


def _max_bytes(part: Part) -> int:
    """Return an upper bound of the size of a part's text."""
    is_compressed = part.path.endswith((*COMPRESSED_SUFFIXES, ".parquet"))
    return part.num_bytes * (MAX_EXPANSION if is_compressed else 1)


def _sample(
    config: DataConfig,
    number: int,
    shards: Sequence[Shard],
    tokenizer: TextTokenizer,
    characters: int,
) -> _Sample:
    """Read the first documents of some shards, about `characters` in total."""
    source = config.sources[number]
    sample = _Sample(Intake(source.name, 1.0, config.max_document_characters), [])
    count = min(SAMPLED_SHARDS, len(shards))
    for index in range(count):
        shard = shards[len(shards) * index // count]
        texts: list[str] = []
        num_characters = 0
        is_complete = True
        for document in kind_of(source).read(config, source, shard.parts, sample.intake):
            texts.append(document.text)
            num_characters += len(document.text)
            if num_characters >= characters // count:
                is_complete = False
                break
        encoded = tokenizer.encode(texts)
        sample.lengths.append(np.array([len(ids) for ids in encoded], dtype=np.int64))
        num_bytes = sum(len(text.encode()) for text in texts)
        sample.num_bytes += num_bytes
        if is_complete:
            sample.complete_bytes += num_bytes
            sample.stated_bytes += shard.num_bytes
    return sample


def to_json(estimates: Sequence[SourceEstimate]) -> list[dict[str, Any]]:
    """Return estimates as JSON values."""
    return [asdict(found) for found in estimates]
