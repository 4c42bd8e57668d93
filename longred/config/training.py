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
    """The adapters of method lora, and the method whose terms and positions they are trained on.

    `targets` are linear layers of the decoder by the last part of their name; the adapters' product
    is scaled by alpha / rank.
    """

    rank: Count = 16
    alpha: Positive = 32.0
    targets: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
    )
    objectives: MethodName = "longred-c"


class ParallelConfig(Section, Layout):  # type: ignore[misc]
    """How a training is divided over processes; its fields and checks are those of `Layout`."""


class TrainingConfig(Section, TrainingSettings):  # type: ignore[misc]
    """How students are trained: the method, its baselines, and the settings that they share.

    `step_tokens` is divided over the buckets by `data.ratio`; methods that use only one bucket
    spend all of it there. `sigma` null is the method's own: 5 in LongReD, 3 in CREAM.
    `merge_weight` is the student's share in method merge. The student after each of `keep_steps`
    is saved beside the result, as `kept/step-000010`; `evaluation.kept` evaluates it too.
    """

    method: MethodName = "longred-c"
    baselines: list[MethodName] = []
    step_tokens: Count = 2097152
    lora: LoraConfig = LoraConfig()
    merge_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    sigma: Positive | None = None
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
        """Return the terms of a method under these settings."""
        return method_terms(method, self.lora.objectives)

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
