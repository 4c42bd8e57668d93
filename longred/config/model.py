"""The original model, its attention, RoPE rescaling, drift profile and choice of layers."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from longred.config.section import AttentionBackend, Section
from longred.method.rope import DYNAMIC_REFUSED, ROPE_METHODS
from longred.method.values import Count, Device, Positive, Undigested


class ModelConfig(Section):
    """The original model: `demo`, a Hugging Face folder, or a hub name with a pinned revision."""

    path: str = "demo"
    revision: str | None = None


class WindowConfig(Section):
    """An intermediate window of a progressive extension, with its own settings.

    `rope_theta` and `num_steps` default to those of the target; abf needs a theta for each window.
    """

    target_window: Count
    rope_theta: Positive | None = None
    num_steps: Count | None = None


class ExtensionConfig(Section):
    """How RoPE is rescaled (`longred.method.rope.ROPE_METHODS`), and the settings of the method.

    `abf` raises rope_theta to the given value, `ntk` by rule; `pi` divides all frequencies, `yarn`
    (beta_fast, beta_slow) and `llama3` (low_freq_factor, high_freq_factor) divide the slow ones,
    and `longrope` divides each by its long_factor (by default from the NTK-aware rule). `windows`
    raises the window in steps: each student starts from the one of the previous window.
    """

    method: Literal["abf", "pi", "ntk", "yarn", "llama3", "longrope"] = "abf"
    rope_theta: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    long_factor: list[Positive] | None = None
    windows: list[WindowConfig] = []
    original_window: int = 0
    target_window: int = 0

    @field_validator("method", mode="before")
    @classmethod
    def _refuse_dynamic(cls, method: Any) -> Any:
        if method == "dynamic":
            raise ValueError(DYNAMIC_REFUSED)
        return method

    def settings(self) -> dict[str, Any]:
        """Return the settings of rescaling methods that are set."""
        names = set[str]().union(*(method.settings for method in ROPE_METHODS.values()))
        return self.model_dump(include=names, exclude_none=True)


class AttentionConfig(Section):
    """Which kernels compute attention: `auto` takes the fastest ones that support the model.

    Kernels add in different orders and so differ in the last bits. FlashAttention computes only in
    bfloat16: float32 runs use `sdpa` whatever this says.
    """

    backend: Undigested[AttentionBackend] = "auto"


class ProfilingConfig(Section):
    """On how much held-out short text the drift of attention and hidden states is measured."""

    num_tokens: Count = 16384
    batch_rows: Undigested[Count] = 8
    device: Undigested[Device] = "auto"
    attention_backend: Undigested[str] = "auto"


class SelectionConfig(Section):
    """Which layers are distilled; `num_distill_layers` counts the last one.

    Strategy `auto` takes the fewest layers that hold `share` of the total attention KL instead.
    """

    strategy: Literal["attention_kl", "hidden", "auto", "uniform", "manual"] = "attention_kl"
    num_distill_layers: Count = 6
    layers: list[Count] | None = None
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
