"""Which text is read and how it is divided over the buckets."""

from typing import Annotated, Any, Literal

from pydantic import Field

from longred.config.section import Bucket, Count, NonNegative, Section, Share


class SourceConfig(Section):
    """A named corpus and its share of each bucket's tokens.

    `library` is the running Python's standard library; `practice` the demo's skill exercises
    (`length` tokens each); `files` a file, folder or glob of txt, md, py, jsonl(.gz) or parquet;
    `hub` a Hugging Face dataset at a pinned revision.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    kind: Literal["library", "practice", "files", "hub"]
    path: str | None = None
    revision: str | None = None
    subset: str | None = None
    split: str = "train"
    text_field: str = "text"
    length: Count | None = None
    buckets: dict[Bucket, NonNegative] = {"long": 1.0, "short": 1.0, "original": 1.0}

    def digest_values(self) -> dict[str, Any]:
        """Return the settings that can change a result; local text is known by its content."""
        values = super().digest_values()
        if self.kind == "files":
            del values["path"]
        return values


class DataConfig(Section):
    """Which text fills the long, short and original buckets, and how much of it.

    `num_tokens` is the number of training tokens written, divided over the buckets by `ratio`.
    Windows and seed are the run's own (top level of the recipe).
    """

    sources: list[SourceConfig] = Field(min_length=1)
    num_tokens: Count
    ratio: dict[Bucket, Count] = {"long": 4, "short": 3, "original": 1}
    short_length: Count = 1024
    min_long_tokens: Count | None = None
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    num_held_out_tokens: Count = 65536
    add_bos: bool = True
    max_rejected_fraction: Share = 0.001
    original_window: int = 0
    target_window: int = 0
    seed: int = 0
