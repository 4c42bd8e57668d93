"""Says who feeds which bucket how much: exact shares of blocks, and a draw for each document."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from longred.config import DataConfig
from longred.errors import ConfigError
from longred.methods import BUCKETS

SPLITS = ("train", "held_out")
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
        pending: tokens that wait to be packed.
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
        weights = [source.buckets.get(bucket, 0.0) for source in config.sources]  # type: ignore[call-overload]
        for number, count in enumerate(share(total, weights)):
            source = config.sources[number]
            if count and source.length and source.length < minimums[bucket]:
                raise ConfigError(
                    f"data.sources.{number}.length: texts of {source.length} tokens cannot fill "
                    f"the {bucket} bucket, which needs {minimums[bucket]}"
                )
            quota = Quota(split, bucket, lengths[bucket], minimums[bucket], count)
            quotas[source.name].append(quota)
    return quotas


def draw(document: str, num_tokens: int, quotas: Iterable[Quota]) -> Quota | None:
    """Return the quota a document feeds: by hash, weighted by what each still needs.

    Args:
        document: a `document_id`; other digits of it than the held-out split's are used.
        num_tokens: the document's length.
        quotas: those of its source and split.

    Returns:
        None when it is too short for every quota that still needs text.
    """
    eligible = [q for q in quotas if q.remaining and num_tokens >= q.minimum]
    if not eligible:
        return None
    point = int(document[16:32], 16) * sum(q.remaining for q in eligible) // 2**64
    for quota in eligible:
        if point < quota.remaining:
            return quota
        point -= quota.remaining
    raise RuntimeError("a draw fell outside the weights")


def shortages(quotas: Mapping[str, Sequence[Quota]]) -> list[str]:
    """Return one line for every source and training bucket that text is missing for."""
    return [
        f"the {q.bucket} bucket needs {q.needed * q.block_length:,} tokens from source {name}, "
        f"{q.written * q.block_length:,} could be filled "
        f"({q.available:,} tokens are in documents of {q.minimum:,} or more, "
        "and a document feeds one bucket)"
        for name, items in quotas.items()
        for q in items
        if q.split == "train" and q.written < q.needed
    ]
