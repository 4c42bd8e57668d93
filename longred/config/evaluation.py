"""What models are asked."""

from typing import Any, Literal

from pydantic import Field

from longred.config.section import Count, Device, Section, Share, runtime

RULER_TASKS = (
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
    "qa_1",
    "qa_2",
)


class RulerConfig(Section):
    """Which RULER tasks are asked at which lengths (tokens), `num_samples` each.

    `kv_retrieval` can be asked beside them and counts in no average.

    Parameters are RULER's own (`full`) or smaller ones for short windows (`compact`); `auto` is
    compact below 4,096 tokens. `revision` is of RULER's wording: `paper` as of 2024, or `current`.
    Needles are hidden in Python's documentation (`haystack: library`), in the data's held-out
    documents (`held_out`), or in the text of a file or folder. `squad` and `hotpot` are files in
    those forms; without them a small set of our own is asked.
    """

    tasks: list[str] = list(RULER_TASKS)
    lengths: list[Count] = Field(min_length=1)
    num_samples: Count = 100
    parameters: Literal["auto", "full", "compact"] = "auto"
    revision: Literal["paper", "current"] = "current"
    haystack: str = "library"
    squad: str | None = None
    hotpot: str | None = None

    def digest_values(self) -> dict[str, Any]:
        """Return the settings that can change a result; files are known by their content."""
        values = super().digest_values()
        if values["haystack"] not in ("library", "held_out"):
            del values["haystack"]
        del values["squad"], values["hotpot"]
        return values


class ShortConfig(Section):
    """Which short-text tasks are asked: a packaged suite, or a suite's YAML file by path.

    `num_samples` is for local tasks; `limit` holds back the tasks of lm-eval, beside what the suite
    says. `capacities` and `tasks` keep a part of the suite. A task whose data cannot be had ends
    the stage (`on_missing: error`) or reads n/a (`skip`).
    """

    suite: str = "demo"
    num_samples: Count = 200
    limit: Count | None = None
    capacities: list[str] = []
    tasks: list[str] = []
    on_missing: Literal["error", "skip"] = "error"
    allow_code_execution: bool = False


class PerplexityConfig(Section):
    """At which lengths (tokens) held-out text is predicted, position by position; none by default.

    `num_tokens` are read at each length. With a `judge`, a model folder or pinned hub name with the
    same tokenizer, LongPPL is measured too: on tokens that the judge predicts much better with the
    whole text before them than with `short_context` tokens (`original_window` if None).
    """

    lengths: list[Count] = []
    num_tokens: Count = 65536
    num_bins: Count = 16
    judge: str | None = None
    judge_revision: str | None = None
    short_context: Count | None = None

    def digest_values(self) -> dict[str, Any]:
        """Return the settings that can change a result; the judge is known by its content."""
        values = super().digest_values()
        del values["judge"], values["judge_revision"]
        return values


class EvaluationConfig(Section):
    """What every model is asked, under one configuration and on the same frozen samples.

    `backend: vllm` lets vLLM generate the answers once it has shown that it gives those of
    transformers (`hf`); it takes `vllm_memory_fraction` of the GPU beside the model itself.

    `kept` asks the students of `training.keep_steps` too, which shows what a training restores and
    forgets over its steps.
    """

    references: list[Literal["original", "rescaled"]] = ["original", "rescaled"]
    ruler: RulerConfig
    short: ShortConfig = ShortConfig()
    perplexity: PerplexityConfig = PerplexityConfig()
    kept: bool = False
    similarity_tokens: Count = 16384
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    chat_template: Literal["auto", "true", "false"] = "auto"
    backend: Literal["hf", "vllm"] = "hf"
    vllm_memory_fraction: Share = runtime(0.6)
    original_window: int = 0
    target_window: int = 0
    seed: int = 0
    batch_size: Count = runtime(8, ge=1)
    device: Device = runtime("auto")
    attention_backend: str = runtime("auto")
    num_processes: Count = runtime(1, ge=1)
