"""The original model, and how its RoPE is rescaled."""

from typing import Any, Literal

from pydantic import field_validator

from longred.config.section import AttentionBackend, Count, Positive, Section, runtime
from longred.method.rope import DYNAMIC_REFUSED


class ModelConfig(Section):
    """The original model: `demo`, a Hugging Face folder, or a hub name with a pinned revision."""

    path: str = "demo"
    revision: str | None = None


class WindowConfig(Section):
    """A window on the way to the target, and what changes there.

    Without `rope_theta` or `num_steps` those of the target are taken; abf needs a theta for each.
    """

    target_window: Count
    rope_theta: Positive | None = None
    num_steps: Count | None = None


class ExtensionConfig(Section):
    """How RoPE is rescaled (`longred.method.rope.METHODS`), and what the method reads.

    `abf` raises rope_theta to the given one, `ntk` by rule; `pi` divides all frequencies, `yarn`
    (beta_fast, beta_slow) and `llama3` (low_freq_factor, high_freq_factor) the slow ones, and
    `longrope` each by its long_factor, by the NTK-aware rule where none are given. With `windows`
    the window is raised in steps: the student of each is where the next one starts.
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
        """Return what is set of the methods' own settings."""
        values = self.model_dump(exclude={"method", "windows", "original_window", "target_window"})
        return {name: value for name, value in values.items() if value is not None}


class AttentionConfig(Section):
    """Which kernels compute attention: `auto` takes the fastest that are installed and can.

    Kernels add in another order and so differ in the last bits. FlashAttention computes in
    bfloat16 only: what runs in float32 uses `sdpa` whatever is named here.
    """

    backend: AttentionBackend = runtime("auto")
