"""The settings of the training stage: what `longred.method.job` shares with a job, and the rest."""

from fractions import Fraction
from typing import Annotated

from pydantic import Field

from longred.config.section import Section
from longred.method.job import TrainingSettings
from longred.method.layout import Layout
from longred.method.methods import Method, MethodName, method_terms
from longred.method.values import Count, Positive, Undigested


class LoraConfig(Section):
    """The adapters of method lora, and the method whose terms and positions they are trained on."""

    rank: Count = Field(
        default=16, description="Rank of the adapters; more ranks can learn more and cost memory."
    )
    alpha: Positive = Field(
        default=32.0,
        description="Scale of the adapters: their product is multiplied by alpha / rank.",
    )
    targets: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="Linear layers of the decoder that get an adapter, by the last part of their "
        "name.",
    )
    objectives: MethodName = Field(
        default="longred-c",
        description="Method whose objectives and positions the adapters train on.",
    )


class ParallelConfig(Section, Layout):  # type: ignore[misc]
    """How a training is divided over processes, one per GPU."""


class TrainingConfig(Section, TrainingSettings):  # type: ignore[misc]
    """How students are trained: the method, its baselines, and the settings that they share."""

    method: MethodName = Field(
        default="longred-c",
        description="Training method: which objective reads which bucket. longred-c is best up to "
        "about 4 times the original window, longred-u far beyond it.",
    )
    baselines: list[MethodName] = Field(
        default=[],
        description="Methods that are trained too, for comparison, on the same data and settings. "
        "Each costs another training.",
        examples=[["cpt"]],
    )
    step_tokens: Count = Field(
        default=2097152,
        description="Tokens of one optimizer step, divided over the buckets by data.ratio; each "
        "bucket gets whole blocks. A method that reads one bucket spends all of them there.",
    )
    lora: LoraConfig = LoraConfig()
    merge_weight: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.5,
        description="Share of the student's weights in method merge; the rest is the original.",
    )
    sigma: Positive | None = Field(
        default=None,
        description="Spread of the skipped positions of longred-c and cream, in half original "
        "windows; null is the method's own, 5 in longred-c and 3 in cream.",
        examples=[5.0],
    )
    original_window: int = 0
    target_window: int = 0
    short_length: int = 0
    ratio: dict[str, int] = {}
    parallel: Undigested[ParallelConfig] = ParallelConfig()
    max_epochs: Undigested[Positive] = Field(
        default=16.0,
        description="How often a training may read a bucket of its data, in epochs; a recipe that "
        "reads one more often is refused before its first stage.",
    )

    def methods(self) -> list[str]:
        """Return the method and its baselines, each once, in the order of training."""
        return list(dict.fromkeys([self.method, *self.baselines]))

    def recipe(self, method: str) -> Method:
        """Return the terms of a method under these settings, on the buckets of `data.ratio`."""
        return method_terms(method, self.lora.objectives).reading(self.ratio)

    def block_lengths(self) -> dict[str, int]:
        """Return the block length of each bucket, in tokens."""
        return {
            "long": self.target_window,
            "short": self.short_length,
            "original": self.original_window,
        }

    def bucket_tokens(self, method: str) -> dict[str, Fraction]:
        """Return the exact share of `step_tokens` that a method reads from each bucket."""
        share = {bucket: self.ratio[bucket] for bucket in self.recipe(method).buckets()}
        return {b: Fraction(self.step_tokens * share[b], sum(share.values())) for b in share}

    def rows(self, method: str) -> dict[str, int]:
        """Return the number of blocks of each bucket in one optimizer step of a method."""
        lengths = self.block_lengths()
        return {
            bucket: int(tokens) // lengths[bucket]
            for bucket, tokens in self.bucket_tokens(method).items()
        }
