"""What models are asked."""

from typing import Literal

from pydantic import Field

from longred.config.section import Count, Device, Section, runtime


class RulerConfig(Section):
    """Which RULER tasks are asked at which lengths (tokens), `num_samples` each."""

    tasks: list[str] = ["niah_single_1", "niah_single_2"]
    lengths: list[Count] = Field(min_length=1)
    num_samples: Count = 100


class ShortConfig(Section):
    """Which short-text tasks are asked, `num_samples` each."""

    suite: str = "demo"
    num_samples: Count = 200


class EvaluationConfig(Section):
    """What every model is asked, under one configuration and on the same frozen samples."""

    references: list[Literal["original", "rescaled"]] = ["original", "rescaled"]
    ruler: RulerConfig
    short: ShortConfig = ShortConfig()
    similarity_tokens: Count = 16384
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    original_window: int = 0
    target_window: int = 0
    seed: int = 0
    batch_size: Count = runtime(8, ge=1)
    device: Device = runtime("auto")
    attention_backend: str = runtime("auto")
