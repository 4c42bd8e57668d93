"""The original model, its attention, RoPE rescaling, drift profile and choice of layers."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from longred.config.section import AttentionBackend, Section
from longred.method.rope import DYNAMIC_REFUSED, ROPE_METHODS
from longred.method.values import Bounds, Count, CountOrZero, Device, Positive, Undigested


class ModelConfig(Section):
    """The original model, which is extended and is the teacher."""

    path: str = Field(
        default="demo",
        description="`demo`, the folder of a model in Hugging Face's format, a `.gguf` file, or a "
        "model's name on the hub.",
        examples=["meta-llama/Meta-Llama-3-8B"],
    )
    revision: str | None = Field(
        default=None,
        description="Commit of a model on the hub, 40 hexadecimal digits; needed with a name on "
        "the hub, since a branch can move.",
        examples=["8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920"],
    )


class WindowConfig(Section):
    """An intermediate window of a progressive extension, with its own settings."""

    target_window: Count = Field(
        description="Window of this step in tokens, between those of its neighbours.",
        examples=[32_768],
    )
    rope_theta: Positive | None = Field(
        default=None,
        description="With abf and cope: RoPE theta at this window; with abf needed if "
        "extension.rope_theta is set, else the rule there holds here too.",
        examples=[20_000_000],
    )
    num_steps: Count | None = Field(
        default=None,
        description="Number of optimizer steps at this window; null takes training.num_steps.",
        examples=[256],
    )


_LATER = {"short_factor", "num_clipped"}


class SearchConfig(Section):
    """Search for longrope's factors: which let the untrained model read needles in long text."""

    num_rounds: CountOrZero = Field(
        default=0,
        description="Number of rounds of the search; 0 searches nothing. Every round after the "
        "first replaces three quarters of the candidates by variations of the best.",
        examples=[8],
    )
    population: Annotated[int, Bounds(ge=2)] = Field(
        default=12, description="Number of candidates, each a set of factors, in a round."
    )
    num_rows: Count = Field(
        default=4,
        description="Number of rows of target_window tokens, held-out text with hidden facts, that "
        "each candidate reads; more give steadier scores.",
    )
    seed: int = Field(default=0, description="Seed of the candidates, the facts and their places.")
    device: Undigested[Device] = Field(
        default="auto", description="Device of the search; auto takes a GPU if there is one."
    )


class ExtensionConfig(Section):
    """How RoPE is rescaled to the target window, and the settings of the method."""

    method: Literal["abf", "pi", "ntk", "yarn", "llama3", "longrope", "cope", "drope"] = Field(
        default="abf",
        description="abf raises theta to rope_theta, ntk by rule; pi divides all frequencies, yarn "
        "and llama3 the slow ones, longrope each by its own factor; cope damps the slowest down to "
        "0; drope switches RoPE off.",
    )
    rope_theta: Positive | None = Field(
        default=None,
        description="With abf: RoPE theta at target_window, above the model's own. null takes the "
        "model's theta times the square of target_window / original_window; published choices lie "
        "on both sides of it. With cope: null keeps the model's.",
        examples=[20_000_000],
    )
    beta_fast: Positive | None = Field(
        default=None,
        description="With yarn: rotations within the original window from which a frequency stays "
        "as it is; null is 32.",
        examples=[32.0],
    )
    beta_slow: Positive | None = Field(
        default=None,
        description="With yarn: rotations within the original window below which a frequency is "
        "fully divided; null is 1.",
        examples=[1.0],
    )
    low_freq_factor: Positive | None = Field(
        default=None,
        description="With llama3: rotations within the original window below which a frequency is "
        "fully divided; null is 1.",
        examples=[1.0],
    )
    high_freq_factor: Positive | None = Field(
        default=None,
        description="With llama3: rotations within the original window from which a frequency "
        "stays as it is; null is 4.",
        examples=[4.0],
    )
    long_factor: list[Positive] | None = Field(
        default=None,
        description="With longrope: the factor that divides each frequency, one for each pair of "
        "rotated dimensions; null takes them from the NTK-aware rule.",
        examples=[[1.0, 1.2, 1.5, 2.0]],
    )
    short_factor: Literal["original"] | None = Field(
        default=None,
        description="With longrope: original keeps RoPE as it was in rows of up to original_window "
        "tokens and takes long_factor in longer ones (mixed windows, LongRoPE2); null takes "
        "long_factor at every length.",
    )
    num_clipped: Annotated[int, Bounds(ge=2)] | None = Field(
        default=None,
        description="With cope: number of the slowest rotations (pairs of dimensions) that are "
        "damped; null counts those that, with the model's own theta, do not turn once within "
        "original_window.",
        examples=[20],
    )
    search: SearchConfig = SearchConfig()
    windows: list[WindowConfig] = Field(
        default=[],
        description="Intermediate windows in rising order: each student starts from the one of "
        "the window before. Empty extends at once.",
        examples=[[{"target_window": 32_768, "rope_theta": 20_000_000}]],
    )
    original_window: int = 0
    target_window: int = 0

    @field_validator("method", mode="before")
    @classmethod
    def _refuse_dynamic(cls, method: Any) -> Any:
        if method == "dynamic":
            raise ValueError(DYNAMIC_REFUSED)
        return method

    def digest_values(self) -> dict[str, Any]:
        """Return the settings that can change a result; unset ones of later versions are left out.

        Recipes that were written before these settings keep their artifacts.
        """
        values = super().digest_values()
        unset = {name for name in _LATER if values[name] is None}
        if not self.search.num_rounds:
            unset.add("search")
        return {name: value for name, value in values.items() if name not in unset}

    def settings(self) -> dict[str, Any]:
        """Return the settings of rescaling methods that are set."""
        names = set[str]().union(*(method.settings for method in ROPE_METHODS.values()))
        return self.model_dump(include=names, exclude_none=True)


class AttentionConfig(Section):
    """Which kernels compute attention."""

    backend: Undigested[AttentionBackend] = Field(
        default="auto",
        description="auto takes the fastest kernels that support the model. Kernels differ in the "
        "last bits. FlashAttention computes only in bfloat16: float32 runs use sdpa in any case.",
    )


class ProfilingConfig(Section):
    """On how much held-out short text the drift of attention and hidden states is measured."""

    num_tokens: Count = Field(
        default=16384,
        description="Number of held-out tokens that both models read; more give steadier scores.",
    )
    batch_rows: Undigested[Count] = Field(
        default=8, description="Number of short rows at once; lower it if GPU memory runs out."
    )
    device: Undigested[Device] = Field(
        default="auto", description="Device of the measurement; auto takes a GPU if there is one."
    )
    attention_backend: Undigested[str] = "auto"


class SelectionConfig(Section):
    """Which layers are distilled."""

    strategy: Literal["attention_kl", "hidden", "auto", "uniform", "manual"] = Field(
        default="attention_kl",
        description="attention_kl takes the layers whose attention changed most, hidden those "
        "whose hidden state did; auto the fewest that hold share; uniform spaces them evenly; "
        "manual takes layers.",
    )
    num_distill_layers: Count = Field(
        default=6,
        description="Number of distilled layers, the last one included; auto and manual ignore it.",
    )
    layers: list[Count] | None = Field(
        default=None,
        description="With manual: the distilled layers as hidden_states indices, from 1 to the "
        "number of layers, which must be one of them.",
        examples=[[9, 12, 14, 15, 32]],
    )
    share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.5,
        description="With auto: share of the total attention KL that the layers must hold.",
    )
