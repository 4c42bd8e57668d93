"""Samples a source too large to be read for a plan, and simulates how it fills the buckets."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.config import DataConfig
from longred.data.documents import Intake
from longred.data.filling import Filler
from longred.data.finding import COMPRESSED_SUFFIXES, suffix_of
from longred.data.quotas import Quota
from longred.data.shards import TABLE, Part, Shard
from longred.data.sources import kind_of, shards_of
from longred.data.tokens import TextTokenizer

SAMPLED_SHARDS = 32
SAMPLED_CHARACTERS = 2**22
# Upper bounds: standard deviations, documents that chance may have hidden, and -log(1 %).
DEVIATIONS = 3.0
HIDDEN_DOCUMENTS = 7
UNSEEN = 4.6
# Compressed text may exceed the size from `files.EXPANSION` or a parquet file by this factor.
MAX_EXPANSION = 4
# Amounts of text in the trials, as factors of the estimate: a sample may be wrong by this much.
TRIALS = (0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.25)
# A trial of more documents is scaled down, together with what is needed.
TRIAL_DOCUMENTS = 20_000


@dataclass(slots=True)
class Sample:
    """The sampled part of a source.

    Attributes:
        shards: all shards of the source; only the first one if its texts are generated.
        intake: counts of its rows.
        lengths: tokens of each document, one array per shard.
        num_bytes: size of its text.
        complete_bytes, stated_bytes: real and stated size of the shards that were read completely.
    """

    shards: list[Shard]
    intake: Intake
    lengths: list[npt.NDArray[np.int64]]
    num_bytes: int = 0
    complete_bytes: int = 0
    stated_bytes: int = 0

    @property
    def documents(self) -> int:
        """Number of sampled documents."""
        return sum(map(len, self.lengths))

    @property
    def total_bytes(self) -> int:
        """Estimated size of the text of the whole source."""
        stated = sum(shard.num_bytes for shard in self.shards)
        if self.stated_bytes:
            stated = stated * self.complete_bytes // self.stated_bytes
        return max(self.num_bytes, stated)

    @property
    def scale(self) -> float:
        """Size of the source over that of the sample."""
        return self.total_bytes / max(1, self.num_bytes)

    def tokens(self, minimum: int = 0) -> int:
        """Return the tokens of sampled documents of at least `minimum` tokens."""
        return sum(int(lengths[lengths >= minimum].sum()) for lengths in self.lengths)

    def count(self, minimum: int) -> int:
        """Return the number of such documents."""
        return sum(int((lengths >= minimum).sum()) for lengths in self.lengths)

    def at_most(self, minimum: int) -> int:
        """Return an upper bound of the tokens in such documents of the whole source.

        It allows for three things: variance over documents and over shards; rare documents that the
        sample missed by chance; and unsampled regions that contain only such documents.
        """
        largest = sum(_max_bytes(part) for shard in self.shards for part in shard.parts)
        total = max(self.total_bytes, largest)
        found = [lengths[lengths >= minimum] for lengths in self.lengths]
        per_shard = np.array([lengths.sum() for lengths in found], dtype=np.float64)
        squares = sum(float((lengths.astype(np.float64) ** 2).sum()) for lengths in found)
        spread = np.sqrt(squares + float(((per_shard - per_shard.mean()) ** 2).sum()))
        sampled = float(per_shard.sum() + DEVIATIONS * spread + HIDDEN_DOCUMENTS * minimum)
        unlike = max(0, total - self.num_bytes) * min(1.0, UNSEEN / len(found))
        return int(sampled * total / self.num_bytes + self.tokens() * unlike / self.num_bytes)


def _max_bytes(part: Part) -> int:
    """Return an upper bound of the size of a part's text."""
    is_compressed = suffix_of(part.path).endswith((*COMPRESSED_SUFFIXES, ".parquet"))
    return part.num_bytes * (MAX_EXPANSION if is_compressed else 1)


def sample_source(
    config: DataConfig, number: int, tokenizer: TextTokenizer, fraction: float | None = None
) -> Sample:
    """Read the first documents of up to SAMPLED_SHARDS shards, spread evenly over a source.

    Args:
        config: the data section.
        number: index of the source.
        tokenizer: the model's tokenizer.
        fraction: upper limit of the share of the text to read; default: SAMPLED_CHARACTERS.
    """
    source = config.sources[number]
    kind = kind_of(source)
    shards = list(itertools.islice(shards_of(config, number), None if kind.is_natural else 1))
    characters = SAMPLED_CHARACTERS
    if fraction is not None:
        characters = min(characters, int(sum(s.num_bytes for s in shards) * fraction))
    sample = Sample(shards, Intake(source.name, config.max_document_characters), [])
    count = min(SAMPLED_SHARDS, len(shards))
    for index in range(count):
        shard = shards[len(shards) * index // count]
        texts: list[str] = []
        num_characters = 0
        is_complete = True
        for document in kind.read(config, source, shard.parts, sample.intake):
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


def is_beyond_chance(count: int, expected: float) -> bool:
    """Return whether a sample has surely more of something than expected at most.

    By Chernoff's bound, a Poisson variable of that mean is so large in less than 1 % of cases; so
    one unreadable file in a small sample does not condemn a source.
    """
    if count <= expected:
        return False
    return not expected or count * math.log(count / expected) - count + expected > UNSEEN


def chances(
    config: DataConfig,
    quotas: Sequence[Quota],
    sample: Sample,
    factors: Sequence[float] = TRIALS,
) -> Mapping[tuple[str, str], float]:
    """Return for each (split, bucket) in which share of trials documents like these fill it.

    A trial draws documents from the sample, as many as the source probably has times a factor, and
    assigns them to buckets as preparing the data does, so that no token counts twice.
    """
    lengths = np.concatenate([np.zeros(0, dtype=np.int64), *sample.lengths])
    filled = {(quota.split, quota.bucket): 0 for quota in quotas}
    for number, factor in enumerate(factors):
        total = sample.documents * sample.scale * factor
        scale = min(1.0, TRIAL_DOCUMENTS / max(1.0, total))
        blocks = _trial(config, _scaled(quotas, scale), lengths, int(total * scale), number)
        for quota in _scaled(quotas, scale):
            key = (quota.split, quota.bucket)
            filled[key] += blocks.get(key, 0) >= quota.needed
    return {key: count / len(factors) for key, count in filled.items()}


def _scaled(quotas: Sequence[Quota], scale: float) -> list[Quota]:
    return [
        replace(q, needed=int(np.ceil(q.needed * scale)), written=0, pending=0, available=0)
        for q in quotas
    ]


def _trial(
    config: DataConfig,
    quotas: Sequence[Quota],
    lengths: npt.NDArray[np.int64],
    count: int,
    seed: int,
) -> dict[tuple[str, str], int]:
    """Return the blocks that `count` random documents of these lengths give."""
    if not len(lengths):
        return {}
    split, draw, choice = np.random.Philox(seed).random_raw(3 * count).reshape(3, count)
    table: npt.NDArray[Any] = np.zeros(count, dtype=TABLE)
    table["split"], table["draw"] = split, draw
    table["length"] = lengths[choice % np.uint64(len(lengths))]
    filler = Filler(quotas, config.validation_fraction)
    filler.add(0, table, np.zeros(count, dtype=bool))
    return filler.select().blocks
