"""Says who feeds which bucket how much: exact shares of blocks, and a draw for each document."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from longred.config import DataConfig, SourceConfig
from longred.errors import ConfigError
from longred.method.methods import BUCKETS

# A bucket of short rows is as broad as its documents: it is filled from at least about this many
# where the text allows.
MIN_DOCUMENTS = 128


@dataclass(slots=True)
class Quota:
    """What one source still owes one bucket of one split.

    Attributes:
        split, bucket: which one.
        block_length: tokens of a block.
        minimum: tokens a document needs to be drawn for this bucket.
        needed: blocks that are wanted.
        written: blocks that are written.
        pending: tokens that pieces waiting to be packed will give.
        available: tokens of the documents that were long enough, wherever they were drawn to.
    """

    split: str
    bucket: str
    block_length: int
    minimum: int
    needed: int
    written: int = 0
    pending: int = 0
    available: int = 0

    @property
    def remaining(self) -> int:
        """Tokens that are neither written nor waiting to be packed; 0 when there are enough."""
        return max(0, (self.needed - self.written) * self.block_length - self.pending)

    @property
    def blocks_per_document(self) -> int:
        """Blocks to take from one document as long as there are others; long ones are rare."""
        return self.needed if self.bucket == "long" else -(-self.needed // MIN_DOCUMENTS)


def block_lengths(config: DataConfig) -> dict[str, int]:
    """Return the tokens of a block of each bucket."""
    return {
        "long": config.target_window,
        "short": config.short_length,
        "original": config.original_window,
    }


def share(total: int, weights: Sequence[float]) -> list[int]:
    """Return `total` divided in proportion to `weights`, each part exact to within one.

    The parts are whole and add up to `total`; what is left over goes to the largest remainders.
    """
    exact = [Fraction(weight) for weight in weights]
    whole = sum(exact)
    if whole <= 0:
        raise ValueError(f"weights: {list(weights)} add up to nothing")
    shares = [total * weight / whole for weight in exact]
    parts = [int(part) for part in shares]
    by_remainder = sorted(range(len(parts)), key=lambda i: (parts[i] - shares[i], i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def source_quotas(config: DataConfig) -> dict[str, list[Quota]]:
    """Return every source's quotas: bucket tokens by `data.ratio`, divided by the sources' shares.

    The held-out split wants `num_held_out_tokens` of each bucket, in the same shares.

    Raises:
        ConfigError: a bucket gets no whole block, or a practice source is too short for its bucket.
    """
    lengths = block_lengths(config)
    minimums = dict(lengths)
    minimums["long"] = config.min_long_tokens or max(1, config.target_window // 2)
    if minimums["long"] > config.target_window:
        raise ConfigError(
            f"data.min_long_tokens: {minimums['long']} is larger than target_window "
            f"({config.target_window})"
        )
    totals: dict[tuple[str, str], int] = {}
    ratio = {bucket: config.ratio[bucket] for bucket in BUCKETS}  # type: ignore[index]
    for bucket in BUCKETS:
        tokens = config.num_tokens * ratio[bucket] // sum(ratio.values())
        totals["train", bucket] = tokens // lengths[bucket]
        totals["held_out", bucket] = max(1, config.num_held_out_tokens // lengths[bucket])
        if not totals["train", bucket]:
            raise ConfigError(
                f"data.num_tokens: {config.num_tokens} gives the {bucket} bucket {tokens} tokens, "
                f"less than one block of {lengths[bucket]}"
            )
    quotas: dict[str, list[Quota]] = {source.name: [] for source in config.sources}
    for (split, bucket), total in totals.items():
        for number, count in enumerate(_divide(config, bucket, total, lengths[bucket], split)):
            source = config.sources[number]
            if count and source.length and source.length < minimums[bucket]:
                raise ConfigError(
                    f"data.sources.{number}.length: texts of {source.length} tokens cannot fill "
                    f"the {bucket} bucket, which needs {minimums[bucket]}"
                )
            quota = Quota(split, bucket, lengths[bucket], minimums[bucket], count)
            quotas[source.name].append(quota)
    return quotas


def _divide(
    config: DataConfig, bucket: str, total: int, block_length: int, split: str
) -> list[int]:
    """Return the blocks of a bucket that each source owes: budgets first, the rest by weight.

    The held-out split is divided in the proportion of the training split.

    Raises:
        ConfigError: budgets are larger than the bucket, or smaller and nobody gives the rest.
    """
    whole = config.num_tokens * config.ratio[bucket] // sum(config.ratio.values()) // block_length  # type: ignore[index]
    weights = [_weight(source, bucket) for source in config.sources]
    budgets = [_budget(config, source, bucket) // block_length for source in config.sources]
    has_budget = [source.num_tokens is not None for source in config.sources]
    rest = whole - sum(budgets)
    sharing = [0.0 if given else weight for given, weight in zip(has_budget, weights, strict=True)]
    # Budgets are cut to whole blocks; what that leaves over is no shortage.
    if rest < 0 or (rest > sum(has_budget) and not any(sharing)):
        raise ConfigError(
            f"data.sources: budgets (num_tokens) give the {bucket} bucket "
            f"{sum(budgets) * block_length:,} tokens, data.num_tokens and data.ratio give it "
            f"{whole * block_length:,}; make them agree, or leave one source without a budget"
        )
    if any(sharing):
        parts = [a + b for a, b in zip(budgets, share(rest, sharing), strict=True)]
    else:
        parts = share(whole, [float(budget) for budget in budgets])
    return parts if split == "train" else share(total, [float(part) for part in parts])


def _weight(source: SourceConfig, bucket: str) -> float:
    return source.weight * source.buckets.get(bucket, 0.0)  # type: ignore[call-overload, no-any-return]


def _budget(config: DataConfig, source: SourceConfig, bucket: str) -> int:
    """Return the tokens of a source's budget that go to a bucket."""
    if source.num_tokens is None:
        return 0
    weights = [config.ratio[b] * _weight(source, b) for b in BUCKETS]  # type: ignore[index]
    if not any(weights):
        return 0
    return share(source.num_tokens, weights)[BUCKETS.index(bucket)]


def draw(word: int, num_tokens: int, quotas: Sequence[Quota]) -> Quota | None:
    """Return the quota a document feeds: by hash, weighted by what each still needs.

    Args:
        word: 64 bits of the document's id, others than those that hold documents out.
        num_tokens: the document's length.
        quotas: those of its source and split.

    Returns:
        None when it is too short for every quota that still needs text.
    """
    weights = [quota.remaining if num_tokens >= quota.minimum else 0 for quota in quotas]
    point = word * sum(weights) >> 64
    for quota, weight in zip(quotas, weights, strict=True):
        if point < weight:
            return quota
        point -= weight
    return None


def shortage(source: str, quota: Quota, blocks: int) -> str:
    """Return one line about a source that cannot fill its share of a bucket with text.

    Args:
        source: its name.
        quota: its share.
        blocks: how many of them could be filled.
    """
    return (
        f"the {quota.bucket} bucket needs {quota.needed * quota.block_length:,} tokens from source "
        f"{source}, {blocks * quota.block_length:,} could be filled "
        f"({quota.available:,} tokens are in documents of {quota.minimum:,} or more, "
        "and a document feeds one bucket)"
    )
