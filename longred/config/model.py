"""The original model, and how its RoPE is rescaled."""

from typing import Literal

from longred.config.section import AttentionBackend, Positive, Section, runtime


class ModelConfig(Section):
    """The original model: `demo`, a Hugging Face folder, or a hub name with a pinned revision."""

    path: str = "demo"
    revision: str | None = None


class ExtensionConfig(Section):
    """How RoPE is rescaled: `abf` raises rope_theta, `pi` interpolates positions linearly."""

    method: Literal["abf", "pi"] = "abf"
    rope_theta: Positive | None = None
    original_window: int = 0
    target_window: int = 0


class AttentionConfig(Section):
    """Which kernels compute attention: `auto` takes the fastest that are installed and can.

    Kernels add in another order and so differ in the last bits. FlashAttention computes in
    bfloat16 only: what runs in float32 uses `sdpa` whatever is named here.
    """

    backend: AttentionBackend = runtime("auto")
