"""Which text the data stage reads, how it fills the buckets, and where shards are tokenised."""

from typing import Annotated, Any, Literal

from pydantic import Field

from longred.config.section import Bucket, Section
from longred.method.values import Count, CountOrZero, NonNegative, Positive, Share, Undigested

# Size of a document that is cut from a long text file, if `split_bytes` is `auto`. With up to 8
# bytes per token, even the shortest piece (half of that) has target_window / 2 tokens.
BYTES_PER_TOKEN = 8
MIN_PIECE_BYTES = 2**16


class SourceConfig(Section):
    """A named corpus and its share of each bucket's tokens.

    `library` is the running Python's standard library; `practice` the demo's skill exercises
    (`length` tokens each); `files` a file, folder, glob or URL (`s3://…`) of txt, md, py,
    jsonl(.gz, .zst) or parquet; `hub` a Hugging Face dataset at a pinned revision. `num_tokens`
    is an exact budget of training tokens; sources without one divide the rest by `weight`.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    kind: Literal["library", "practice", "files", "hub"]
    path: str | None = None
    revision: str | None = None
    subset: str | None = None
    split: str = "train"
    text_field: str = "text"
    length: Count | None = None
    weight: Positive = 1.0
    num_tokens: Count | None = None
    buckets: dict[Bucket, NonNegative] = {"long": 1.0, "short": 1.0, "original": 1.0}

    def digest_values(self) -> dict[str, Any]:
        """Return the settings that can change a result; local text is identified by its content."""
        values = super().digest_values()
        if self.kind == "files":
            del values["path"]
        return values


class ExecutorConfig(Section):
    """Where shards are tokenised; nothing here changes a result.

    `pool` uses processes of this machine, `datatrove` the same through datatrove's local executor;
    `slurm` and `ray` are datatrove's executors for clusters and need a store shared by all nodes.
    """

    kind: Undigested[Literal["pool", "datatrove", "slurm", "ray"]] = "pool"
    num_workers: Undigested[CountOrZero] = 0
    max_tasks: Undigested[Count] = Field(default=64, le=1000)
    partition: Undigested[str | None] = None
    time_limit: Undigested[str] = "12:00:00"
    memory_gb: Undigested[Count] = 2
    env_command: Undigested[str] = ""
    poll_seconds: Undigested[Positive] = 10.0


class DataConfig(Section):
    """Which text fills the long, short and original buckets, and how much of it.

    `num_tokens` is the number of training tokens, divided over the buckets by `ratio`.
    `shard_bytes` of text are one unit of work; a stopped preparation repeats at most one.
    Documents that share a 13-gram with a file of `decontaminate` are dropped. Windows and seed are
    copied from the top level of the recipe.
    """

    sources: list[SourceConfig] = Field(min_length=1)
    num_tokens: Count
    ratio: dict[Bucket, Count] = {"long": 4, "short": 3, "original": 1}
    short_length: Count = 1024
    min_long_tokens: Count | None = None
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    num_held_out_tokens: Count = 65536
    add_bos: bool = True
    drop_duplicates: bool = True
    decontaminate: list[str] = []
    max_document_characters: Count = 10_000_000
    max_rejected_fraction: Share = 0.001
    split_bytes: Undigested[Annotated[int, Field(ge=1024)] | Literal["auto"] | None] = Field(
        default="auto",
        description=(
            "Bytes. Text files (.txt, .md, .py) of twice this size or more are cut into documents "
            "of about this size, at headings or blank lines where possible. `auto`: 8 bytes per "
            "token of target_window, at least 65,536; null: never. At most half of "
            "max_document_characters is used. Rows of JSON lines and parquet files are never cut."
        ),
    )
    shard_bytes: Count = 64 * 2**20
    executor: Undigested[ExecutorConfig] = ExecutorConfig()
    original_window: int = 0
    target_window: int = 0
    seed: int = 0

    def digest_values(self) -> dict[str, Any]:
        """Return the settings that can change a result; `decontaminate` files count by content."""
        values = super().digest_values()
        values["decontaminate"] = bool(self.decontaminate)
        return values

    def piece_bytes(self) -> int | None:
        """Return `split_bytes` as a number, or None if text files are never cut.

        It stays out of the digest, because the fingerprint of a source that is cut contains it.
        """
        size = self.split_bytes
        if size is None:
            return None
        if size == "auto":
            size = max(MIN_PIECE_BYTES, BYTES_PER_TOKEN * self.target_window)
        return min(size, max(1024, self.max_document_characters // 2))
