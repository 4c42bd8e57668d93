"""Which text the data stage reads, how it fills the buckets, and where shards are tokenised."""

from typing import Annotated, Any, Literal

from pydantic import Field

from longred.config.section import Bucket, Section
from longred.method.values import (
    ByContent,
    Count,
    CountOrZero,
    NonNegative,
    Positive,
    Share,
    Undigested,
)

# Size of a document that is cut from a long text file, if `split_bytes` is `auto`. With up to 8
# bytes per token, even the shortest piece (half of that) has target_window / 2 tokens.
BYTES_PER_TOKEN = 8
MIN_PIECE_BYTES = 2**16


class SourceConfig(Section):
    """A named corpus and its share of each bucket's tokens."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        description="Name of the source in reports and messages: small letters, digits, - and _.",
        examples=["books"],
    )
    kind: Literal["library", "practice", "files", "hub"] = Field(
        description="Where texts come from: local or remote files, a Hugging Face dataset (hub), "
        "the running Python's standard library, or the demo's skill exercises (practice).",
        examples=["files"],
    )
    path: str | None = Field(
        default=None,
        description="With kind files: a file, folder, glob or URL (s3://…) of txt, md, py, "
        "jsonl(.gz, .zst) or parquet. With kind hub: the dataset's name. Needed for both.",
        examples=["/data/books/*.txt"],
    )
    revision: str | None = Field(
        default=None,
        description="Commit of a dataset on the hub, 40 hexadecimal digits; needed with kind hub, "
        "since a branch can move.",
        examples=["b5f90f419b7489cdba26fdbc8c022fcb5562f968"],
    )
    subset: str | None = Field(
        default=None,
        description="Subset (configuration) of a dataset on the hub; null for its default one.",
        examples=["en"],
    )
    split: str = Field(default="train", description="Split of a dataset on the hub.")
    text_field: str = Field(
        default="text",
        description="Name of the column or JSON key that holds the text, in jsonl, parquet and hub "
        "sources.",
    )
    length: Count | None = Field(
        default=None,
        description="Tokens of each exercise, 64 or more; needed with kind practice, and only "
        "there.",
        examples=[256],
    )
    weight: Positive = Field(
        default=1.0,
        description="Relative weight by which sources without num_tokens divide the rest of each "
        "bucket's tokens.",
    )
    num_tokens: Count | None = Field(
        default=None,
        description="Exact budget of training tokens from this source; null takes a share by "
        "weight.",
        examples=[100_000_000],
    )
    buckets: dict[Bucket, NonNegative] = Field(
        default={"long": 1.0, "short": 1.0, "original": 1.0},
        description="Factor on the weight of this source in each bucket; a bucket that is left out "
        "or 0 gets nothing from it.",
        examples=[{"long": 1.0}],
    )

    def digest_values(self) -> dict[str, Any]:
        """Return the settings that can change a result; local text is identified by its content."""
        values = super().digest_values()
        if self.kind == "files":
            del values["path"]
        return values


class ExecutorConfig(Section):
    """Where shards are tokenised; nothing here changes a result."""

    kind: Undigested[Literal["pool", "datatrove", "slurm", "ray"]] = Field(
        default="pool",
        description="pool uses processes of this machine, datatrove the same through its local "
        "executor; slurm and ray are datatrove's executors for clusters and need a store that all "
        "nodes share.",
    )
    num_workers: Undigested[CountOrZero] = Field(
        default=0,
        description="Number of tokenising processes, on a cluster of tasks at a time; 0 takes as "
        "many as the cores or the cluster allow. Lower it if memory runs out.",
    )
    max_tasks: Undigested[Count] = Field(
        default=64,
        le=1000,
        description="Largest number of tasks that the shards are divided into; a lost "
        "task repeats only its own shards.",
    )
    partition: Undigested[str | None] = Field(
        default=None,
        description="Partition of Slurm's jobs; needed with kind slurm.",
        examples=["cpu"],
    )
    time_limit: Undigested[str] = Field(
        default="12:00:00", description="Longest time of one Slurm job, as hours:minutes:seconds."
    )
    memory_gb: Undigested[Count] = Field(
        default=2, description="Memory of one core in a Slurm job, in GB."
    )
    env_command: Undigested[str] = Field(
        default="",
        description="Shell command that prepares the environment of a Slurm job.",
        examples=["source /opt/longred/bin/activate"],
    )
    poll_seconds: Undigested[Positive] = Field(
        default=10.0,
        description="Seconds between two questions to Slurm whether its jobs still run.",
    )


class DataConfig(Section):
    """Which text fills the long, short and original buckets, and how much of it."""

    sources: list[SourceConfig] = Field(
        min_length=1,
        description="Corpora that the buckets are filled from; a document fills one bucket.",
        examples=[[{"name": "books", "kind": "files", "path": "/data/books"}]],
    )
    num_tokens: Count = Field(
        description="Number of training tokens in all buckets together, divided over them by "
        "ratio. A training of num_steps x step_tokens reads them about once if they are equal.",
        examples=[100_000_000],
    )
    ratio: dict[Bucket, CountOrZero] = Field(
        default={"long": 4, "short": 3, "original": 1},
        description="Ratio of tokens of the long, short and original bucket, in the data and in "
        "each optimizer step. A bucket of 0 is not filled, and mix-cpt does without it; methods "
        "that distil on it are refused.",
    )
    short_length: Count = Field(
        default=1024,
        description="Tokens of a short block: at most half of original_window, where the teacher "
        "is reliable, or all of it, to compare.",
    )
    min_long_tokens: Count | None = Field(
        default=None,
        description="Fewest tokens of a document for the long bucket; null is half of "
        "target_window. Lower it if too few documents are long: several then share a block.",
        examples=[32_768],
    )
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = Field(
        default=0.1,
        description="Share of documents that is held out from training, for profiling and "
        "evaluation; small for a large corpus.",
    )
    num_held_out_tokens: Count = Field(
        default=65536,
        description="Number of held-out tokens in each bucket. Raise it if a stage asks for more "
        "held-out text.",
    )
    add_bos: bool | None = Field(
        default=None,
        description="Whether every document starts with the BOS token; null to do as the "
        "tokenizer does.",
        examples=[True],
    )
    drop_duplicates: bool = Field(
        default=True, description="Whether documents with the same text are used only once."
    )
    decontaminate: list[str] = Field(
        default=[],
        description="Files, folders or globs of evaluation texts; documents that share 13 words "
        "in a row with one of them are dropped.",
        examples=[["/data/benchmarks/*.jsonl"]],
    )
    max_document_characters: Count = Field(
        default=10_000_000, description="Most characters of a document; longer ones are rejected."
    )
    max_rejected_fraction: Share = Field(
        default=0.001,
        description="Largest share of the rows read from a source that may be unusable (broken "
        "encoding, no text field, too long, an unreadable file); more end the stage with a list.",
    )
    split_bytes: ByContent[Annotated[int, Field(ge=1024)] | Literal["auto"] | None] = Field(
        default="auto",
        description="Text files (.txt, .md, .py) of twice as many bytes are cut at headings or "
        "blank lines into documents of about this size; rows of jsonl and parquet files never. "
        "auto: 8 bytes per token of target_window, at least 65,536; null: no file is cut.",
        examples=[65_536],
    )
    shard_bytes: Count = Field(
        default=64 * 2**20,
        description="Bytes of text in one unit of work; a stopped preparation repeats at most one "
        "unit per process. Smaller for a small corpus.",
    )
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
