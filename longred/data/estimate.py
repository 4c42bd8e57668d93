"""Estimates from a sample what a corpus can fill, before anything is written."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.config import DataConfig
from longred.data.files import COMPRESSED_SUFFIXES
from longred.data.intake import Intake
from longred.data.kinds import kind_of
from longred.data.quotas import Quota, source_quotas
from longred.data.shards import Part, Shard
from longred.data.sources import check_sources, shards_of
from longred.data.tokens import TextTokenizer
from longred.errors import ConfigError

SAMPLED_SHARDS = 32
SAMPLED_CHARACTERS = 2**22
# Before tokenising, so much of the text at most is sampled, and nothing of fewer shards.
SAMPLED_FRACTION = 1 / 16
MIN_SHARDS = 3
# Upper bounds: standard deviations, documents that chance may have hidden, and -log(1 %).
DEVIATIONS = 3.0
HIDDEN_DOCUMENTS = 7
UNSEEN = 4.6
# Compressed text may be so many times what `files.EXPANSION` or a parquet file's size says.
MAX_EXPANSION = 4


@dataclass(frozen=True, slots=True)
class BucketEstimate:
    """What one source should be able to give one bucket of the training split.

    Attributes:
        bucket: which one.
        needed_tokens: the source's share of it.
        available_tokens: in documents that are long enough; None where texts are made as needed.
        at_most_tokens: the same with all that the sample may have missed; None where the source's
            size is not known.
    """

    bucket: str
    needed_tokens: int
    available_tokens: int | None
    at_most_tokens: int | None

    @property
    def verdict(self) -> str:
        """`fits`, `tight` (less than twice the need: a document feeds one bucket) or `short`."""
        if self.available_tokens is None or self.available_tokens >= 2 * self.needed_tokens:
            return "fits"
        return "tight" if self.available_tokens >= self.needed_tokens else "short"


@dataclass(frozen=True, slots=True)
class SourceEstimate:
    """What a sample says of one source.

    Attributes:
        source: its name.
        shards: units of work it has; None where it never ends.
        num_bytes: about how much text it has; None likewise.
        sampled_shards, sampled_documents, sampled_tokens, rejected: of the sample.
        buckets: what it can give.
    """

    source: str
    shards: int | None
    num_bytes: int | None
    sampled_shards: int
    sampled_documents: int
    sampled_tokens: int
    rejected: int
    buckets: list[BucketEstimate]


@dataclass(frozen=True, slots=True)
class _Sample:
    """What was read of a source.

    Attributes:
        lengths: tokens of each document, one array a shard.
        num_bytes: how much text they are.
        whole_bytes, said_bytes: how much text the shards have that were read to their end, and how
            much they are said to have.
        intake: how rows were taken.
    """

    lengths: list[npt.NDArray[np.int64]]
    num_bytes: int
    whole_bytes: int
    said_bytes: int
    intake: Intake

    def corrected(self, said: int) -> int:
        """Return how much text there is where `said` bytes are said to be."""
        return said * self.whole_bytes // self.said_bytes if self.said_bytes else said

    def tokens(self, minimum: int = 0) -> int:
        """Return the tokens of documents of so many or more."""
        return sum(int(lengths[lengths >= minimum].sum()) for lengths in self.lengths)

    def at_most(self, minimum: int, total: int) -> float:
        """Return how many such tokens `total` bytes of text may have, where luck was bad.

        Three things are allowed for: spread over documents and over shards, rare documents of
        which the sample has none by chance, and places unlike all sampled ones, with only such
        documents in them.
        """
        found = [lengths[lengths >= minimum] for lengths in self.lengths]
        per_shard = np.array([lengths.sum() for lengths in found], dtype=np.float64)
        squares = sum(float((lengths.astype(np.float64) ** 2).sum()) for lengths in found)
        spread = np.sqrt(squares + float(((per_shard - per_shard.mean()) ** 2).sum()))
        sampled = float(per_shard.sum() + DEVIATIONS * spread + HIDDEN_DOCUMENTS * minimum)
        unlike = max(0, total - self.num_bytes) * min(1.0, UNSEEN / len(found))
        return sampled * total / self.num_bytes + self.tokens() * unlike / self.num_bytes


def estimate(config: DataConfig, tokenizer_folder: Path) -> list[SourceEstimate]:
    """Return what each source should be able to give, from a few places of it.

    Lengths are those of whole documents in up to SAMPLED_SHARDS shards that lie evenly over the
    source, about SAMPLED_CHARACTERS in all; nothing is written.

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

    A corpus that may be enough passes: only tokenising it says more. So does a source of fewer
    than MIN_SHARDS shards, and one whose size nobody knows.

    Raises:
        ConfigError: a source is too small; names every such bucket.
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
        raise ConfigError(
            "data.num_tokens: not enough text: " + "; ".join(missing) + ". Nothing has been "
            "tokenised. Lower data.num_tokens, change data.ratio or the shares in data.sources, or "
            "add text"
        )


def _estimate(
    config: DataConfig,
    number: int,
    quotas: Sequence[Quota],
    tokenizer: TextTokenizer,
    fraction: float | None = None,
) -> SourceEstimate:
    source = config.sources[number]
    kind = kind_of(source)
    is_endless = not kind.is_natural
    shards = list(itertools.islice(shards_of(config, number), 1 if is_endless else None))
    said = sum(shard.num_bytes for shard in shards)
    most = SAMPLED_CHARACTERS if fraction is None else int(said * fraction)
    sample = _sample(config, shards, tokenizer, min(SAMPLED_CHARACTERS, most))
    total = max(sample.num_bytes, sample.corrected(said))
    scale = total / max(1, sample.num_bytes) * (1 - config.validation_fraction)
    largest = max(
        total, sum(part.num_bytes * _slack(part) for shard in shards for part in shard.parts)
    )
    return SourceEstimate(
        source=source.name,
        shards=None if is_endless else len(shards),
        num_bytes=None if is_endless else total,
        sampled_shards=len(sample.lengths),
        sampled_documents=sum(map(len, sample.lengths)),
        sampled_tokens=sample.tokens(),
        rejected=sample.intake.rejected.total(),
        buckets=[
            BucketEstimate(
                quota.bucket,
                quota.needed * quota.block_length,
                None if is_endless else int(sample.tokens(quota.minimum) * scale),
                int(sample.at_most(quota.minimum, largest))
                if kind.is_natural and kind.knows_sizes and sample.num_bytes
                else None,
            )
            for quota in quotas
            if quota.split == "train" and quota.needed
        ],
    )


def _slack(part: Part) -> int:
    """Return how many times the size it is said to have a part's text may be."""
    return MAX_EXPANSION if part.path.endswith((*COMPRESSED_SUFFIXES, ".parquet")) else 1


def _sample(
    config: DataConfig, shards: Sequence[Shard], tokenizer: TextTokenizer, characters: int
) -> _Sample:
    """Return the first documents of some shards, about so many characters in all."""
    count = min(SAMPLED_SHARDS, len(shards))
    source = config.sources[shards[0].source] if shards else config.sources[0]
    intake = Intake(source.name, 1.0, config.max_document_characters)
    lengths: list[npt.NDArray[np.int64]] = []
    num_bytes = whole_bytes = said_bytes = 0
    for place in range(count):
        shard = shards[len(shards) * place // count]
        texts: list[str] = []
        num_characters, is_whole = 0, False
        for document in kind_of(source).read(config, source, shard.parts, intake):
            texts.append(document.text)
            num_characters += len(document.text)
            if num_characters >= characters // count:
                break
        else:
            is_whole = True
        lengths.append(np.array([len(ids) for ids in tokenizer.encode(texts)], dtype=np.int64))
        text_bytes = sum(len(text.encode()) for text in texts)
        num_bytes += text_bytes
        if is_whole:
            whole_bytes += text_bytes
            said_bytes += shard.num_bytes
    return _Sample(lengths, num_bytes, whole_bytes, said_bytes, intake)


def to_json(estimates: Sequence[SourceEstimate]) -> list[dict[str, Any]]:
    """Return estimates as JSON values."""
    return [
        {
            **asdict(replace(found, buckets=[])),
            "buckets": [{**asdict(bucket), "verdict": bucket.verdict} for bucket in found.buckets],
        }
        for found in estimates
    ]
