"""How many blocks of each bucket a source provides, and the bucket drawn for each document."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from longred.config import DataConfig, SourceConfig
from longred.errors import ConfigError
from longred.method.methods import BUCKETS

# Short and original buckets use at least about this many documents, if the text allows.
MIN_DOCUMENTS = 128


@dataclass(slots=True)
class Quota:
    """The blocks that one source has to provide for one bucket of one split.

    Attributes:
        split, bucket: which one.
        block_length: tokens of a block.
        minimum: tokens that a document needs to be drawn for this bucket.
        needed: wanted blocks.
        written: selected blocks.
        pending: expected tokens of the pieces that wait to be packed.
        available: tokens of all documents that are long enough, whatever their bucket.
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
        """Tokens still missing: neither selected nor waiting to be packed; at least 0."""
        return max(0, (self.needed - self.written) * self.block_length - self.pending)

    @property
    def blocks_per_document(self) -> int:
        """Blocks to take from one document while there are others; long ones are rare."""
        return self.needed if self.bucket == "long" else -(-self.needed // MIN_DOCUMENTS)


def block_lengths(config: DataConfig) -> dict[str, int]:
    """Return the tokens of a block of each bucket."""
    return {
        "long": config.target_window,
        "short": config.short_length,
        "original": config.original_window,
    }


def least_num_tokens(config: DataConfig) -> int:
    """Return the smallest `num_tokens` that gives every bucket of the ratio a whole block."""
    total, lengths = sum(config.ratio.values()), block_lengths(config)
    return max(-(-lengths[bucket] * total // part) for bucket, part in config.ratio.items() if part)


def share(total: int, weights: Sequence[float]) -> list[int]:
    """Divide `total` in proportion to `weights`; each part is exact to within one.

    The parts are integers and add up to `total`; the remainder goes to the largest fractions.
    """
    exact = [Fraction(weight) for weight in weights]
    whole = sum(exact)
    if whole <= 0:
        raise ValueError(f"weights: {list(weights)} do not have a positive sum")
    shares = [total * weight / whole for weight in exact]
    parts = [int(part) for part in shares]
    by_remainder = sorted(range(len(parts)), key=lambda i: (parts[i] - shares[i], i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def source_quotas(config: DataConfig) -> dict[str, list[Quota]]:
    """Return the quotas of each source: bucket tokens by `data.ratio`, divided by source shares.

    The held-out split has `num_held_out_tokens` in each bucket, divided by the same shares. One
    whose part of the ratio is 0 gets no blocks, except held-out short ones, which profiling and
    evaluation read.

    Raises:
        ConfigError: a bucket gets no whole block, or practice texts are too short for a bucket.
    """
    lengths = block_lengths(config)
    min_long_tokens = config.min_long_tokens or max(1, config.target_window // 2)
    minimums = {**lengths, "long": min_long_tokens}
    if min_long_tokens > config.target_window:
        raise ConfigError(
            f"data.min_long_tokens: {min_long_tokens} is larger than target_window "
            f"({config.target_window})"
        )
    totals: dict[tuple[str, str], int] = {}
    for bucket in BUCKETS:
        tokens = _bucket_tokens(config, bucket)
        totals["train", bucket] = tokens // lengths[bucket]
        is_read = bool(config.ratio[bucket])  # type: ignore[index]
        totals["held_out", bucket] = 0
        if is_read or bucket == "short":
            totals["held_out", bucket] = max(1, config.num_held_out_tokens // lengths[bucket])
        if is_read and not totals["train", bucket]:
            raise ConfigError(
                f"data.num_tokens: {config.num_tokens} gives the {bucket} bucket {tokens} tokens, "
                f"less than one block of {lengths[bucket]}; give at least "
                f"{least_num_tokens(config)}"
            )
    quotas: dict[str, list[Quota]] = {source.name: [] for source in config.sources}
    for (split, bucket), total in totals.items():
        if config.ratio[bucket]:  # type: ignore[index]
            counts = _divide(config, bucket, totals["train", bucket], lengths[bucket])
            if split == "held_out":
                counts = share(total, counts)
        else:
            counts = _without_training(config, bucket, total, minimums[bucket])
        for number, (source, count) in enumerate(zip(config.sources, counts, strict=True)):
            if count and source.length and source.length < minimums[bucket]:
                raise ConfigError(
                    f"data.sources.{number}.length: texts of {source.length} tokens cannot fill "
                    f"the {bucket} bucket, which needs {minimums[bucket]}"
                )
            quota = Quota(split, bucket, lengths[bucket], minimums[bucket], count)
            quotas[source.name].append(quota)
    return quotas


def _bucket_tokens(config: DataConfig, bucket: str) -> int:
    return config.num_tokens * config.ratio[bucket] // sum(config.ratio.values())  # type: ignore[index]


def _divide(config: DataConfig, bucket: str, total: int, block_length: int) -> list[int]:
    """Return the training blocks of a bucket per source: budgets first, the rest by weight.

    Raises:
        ConfigError: the budgets exceed the bucket, or no source provides the rest.
    """
    weights = [_weight(source, bucket) for source in config.sources]
    budgets = [_budget(config, source, bucket) // block_length for source in config.sources]
    has_budget = [source.num_tokens is not None for source in config.sources]
    rest = total - sum(budgets)
    sharing = [0.0 if given else weight for given, weight in zip(has_budget, weights, strict=True)]
    # Budgets are cut to whole blocks; the cut part is not a shortage.
    if rest < 0 or (rest > sum(has_budget) and not any(sharing)):
        raise ConfigError(
            f"data.sources: budgets (num_tokens) give the {bucket} bucket "
            f"{sum(budgets) * block_length:,} tokens, data.num_tokens and data.ratio give it "
            f"{total * block_length:,}; make them agree, or leave one source without a budget"
        )
    if any(sharing):
        return [a + b for a, b in zip(budgets, share(rest, sharing), strict=True)]
    return share(total, budgets)


def _without_training(config: DataConfig, bucket: str, total: int, minimum: int) -> list[int]:
    """Return the held-out blocks per source of a bucket that no training reads.

    If no source has a share of the bucket, all whose texts are long enough have their weight.
    """
    weights = [_weight(source, bucket) for source in config.sources]
    if not any(weights):
        weights = [s.weight * ((s.length or minimum) >= minimum) for s in config.sources]
    return share(total, weights) if any(weights) else [0] * len(weights)


def _weight(source: SourceConfig, bucket: str) -> float:
    return source.weight * source.buckets.get(bucket, 0.0)  # type: ignore[call-overload, no-any-return]


def _budget(config: DataConfig, source: SourceConfig, bucket: str) -> int:
    """Return the tokens of a source's budget for a bucket."""
    if source.num_tokens is None:
        return 0
    weights = [config.ratio[b] * _weight(source, b) for b in BUCKETS]  # type: ignore[index]
    if not any(weights):
        return 0
    return share(source.num_tokens, weights)[BUCKETS.index(bucket)]


def draw(word: int, num_tokens: int, quotas: Sequence[Quota]) -> Quota | None:
    """Draw the quota that a document feeds, by hash, weighted by the remaining tokens.

    Args:
        word: 64 bits of the document's id, not those that decide the split.
        num_tokens: the document's length.
        quotas: those of its source and split.

    Returns:
        None if the document is too short for every quota with remaining tokens.
    """
    weights = [quota.remaining if num_tokens >= quota.minimum else 0 for quota in quotas]
    point = word * sum(weights) >> 64
    for quota, weight in zip(quotas, weights, strict=True):
        if point < weight:
            return quota
        point -= weight
    return None


def not_enough_text(
    shortages: Sequence[str],
    note: str = "",
    remedies: Sequence[str] | None = None,
    instead: str = "",
) -> ConfigError:
    """Return the error for buckets that cannot be filled.

    Args:
        shortages: what is missing where.
        note: a sentence with a space at its end.
        remedies: changes that are known to suffice, each a key to lower; default: unknown.
        instead: a sentence on other changes that suffice without these.
    """
    keys = ["data.num_tokens"] if remedies is None else remedies
    lower = f"lower {', or '.join(keys)}, change" if keys else "change"
    lower = f"{instead} Or {lower}" if instead else lower[0].upper() + lower[1:]
    return ConfigError(
        f"data.num_tokens: not enough text: {'; '.join(shortages)}. {note}{lower} "
        "data.ratio or the shares in data.sources, or add text"
    )
