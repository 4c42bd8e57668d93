"""How drift is measured, and which layers are chosen by it."""

from typing import Annotated, Literal

from pydantic import Field

from longred.config.section import Count, Device, Section, runtime


class ProfilingConfig(Section):
    """How much held-out short text the drift of attention and hidden states is measured on."""

    num_tokens: Count = 16384
    batch_rows: Count = runtime(8, ge=1)
    device: Device = runtime("auto")
    attention_backend: str = runtime("auto")


class SelectionConfig(Section):
    """Which layers are distilled; `num_distill_layers` counts the last one.

    Strategy `auto` takes the fewest layers that hold `share` of the total attention KL instead.
    """

    strategy: Literal["attention_kl", "hidden", "auto", "uniform", "manual"] = "attention_kl"
    num_distill_layers: Count = 6
    layers: list[Count] | None = None
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
