"""Estimates from a sample what a corpus can fill, before anything is written."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.config import DataConfig
from longred.data.intake import Intake
from longred.data.kinds import kind_of
from longred.data.quotas import Quota, source_quotas
from longred.data.shards import Shard
from longred.data.sources import check_sources, shards_of
from longred.data.tokens import TextTokenizer

SAMPLED_SHARDS = 8
SAMPLED_CHARACTERS = 2**20
BATCH_DOCUMENTS = 64


@dataclass(frozen=True, slots=True)
class BucketEstimate:
    """What one source should be able to give one bucket of the training split.

    Attributes:
        bucket: which one.
        needed_tokens: the source's share of it.
        available_tokens: in documents that are long enough; None where texts are made as needed.
    """

    bucket: str
    needed_tokens: int
    available_tokens: int | None

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
        sampled_documents, sampled_tokens, rejected: of the sample.
        buckets: what it can give.
    """

    source: str
    shards: int | None
    num_bytes: int | None
    sampled_documents: int
    sampled_tokens: int
    rejected: int
    buckets: list[BucketEstimate]


def estimate(config: DataConfig, tokenizer_folder: Path) -> list[SourceEstimate]:
    """Return what each source should be able to give, from a few places of it.

    Lengths are those of whole documents in up to SAMPLED_SHARDS shards that lie evenly over the
    source; nothing is written.

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


def _estimate(
    config: DataConfig, number: int, quotas: Sequence[Quota], tokenizer: TextTokenizer
) -> SourceEstimate:
    source = config.sources[number]
    is_endless = not kind_of(source).is_natural
    shards = list(itertools.islice(shards_of(config, number), 1 if is_endless else None))
    total = sum(shard.num_bytes for shard in shards)
    lengths, num_bytes, intake = _sample(config, shards, tokenizer)
    scale = total / max(1, num_bytes) * (1 - config.validation_fraction)
    return SourceEstimate(
        source=source.name,
        shards=None if is_endless else len(shards),
        num_bytes=None if is_endless else total,
        sampled_documents=len(lengths),
        sampled_tokens=int(lengths.sum()),
        rejected=intake.rejected.total(),
        buckets=[
            BucketEstimate(
                quota.bucket,
                quota.needed * quota.block_length,
                None if is_endless else int(lengths[lengths >= quota.minimum].sum() * scale),
            )
            for quota in quotas
            if quota.split == "train" and quota.needed
        ],
    )


def _sample(
    config: DataConfig, shards: Sequence[Shard], tokenizer: TextTokenizer
) -> tuple[npt.NDArray[np.int64], int, Intake]:
    """Return lengths of some documents, how much text they are, and how rows were taken."""
    count = min(SAMPLED_SHARDS, len(shards))
    chosen = [shards[len(shards) * place // count] for place in range(count)]
    found: list[int] = []
    num_bytes = 0
    source = config.sources[shards[0].source] if shards else config.sources[0]
    intake = Intake(source.name, 1.0, config.max_document_characters)
    for shard in chosen:
        documents = kind_of(source).read(config, source, shard.parts, intake)
        num_characters = 0
        while num_characters < SAMPLED_CHARACTERS:
            batch = [document.text for document in itertools.islice(documents, BATCH_DOCUMENTS)]
            if not batch:
                break
            found += [len(ids) for ids in tokenizer.encode(batch)]
            num_characters += sum(map(len, batch))
            num_bytes += sum(len(text.encode()) for text in batch)
    return np.array(found, dtype=np.int64), num_bytes, intake


def to_json(estimates: Sequence[SourceEstimate]) -> list[dict[str, Any]]:
    """Return estimates as JSON values."""
    return [
        {
            **asdict(replace(found, buckets=[])),
            "buckets": [{**asdict(bucket), "verdict": bucket.verdict} for bucket in found.buckets],
        }
        for found in estimates
    ]
