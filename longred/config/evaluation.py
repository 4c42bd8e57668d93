"""How models are evaluated: RULER, short-text tasks, perplexity."""

from typing import Any, Literal

from longred.config.section import Section
from longred.method.values import Count, Device, Share, Undigested

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
    """Which RULER tasks run at which lengths (tokens), `num_samples` each.

    Task `kv_retrieval` can be added and counts in no average.

    Parameters are RULER's own (`full`) or smaller ones for short windows (`compact`); `auto` is
    compact below 4,096 tokens. `revision` selects RULER's wording: `paper` of 2024, or `current`.
    Needles are hidden in Python's documentation (`haystack: library`), in the data's held-out
    documents (`held_out`), or in the text of a file or folder. `squad` and `hotpot` are files in
    those formats; the default is a small packaged set of questions.
    """

    tasks: list[str] = list(RULER_TASKS)
    lengths: list[Count] = []
    num_samples: Count = 100
    parameters: Literal["auto", "full", "compact"] = "auto"
    revision: Literal["paper", "current"] = "current"
    haystack: str = "library"
    squad: Undigested[str | None] = None
    hotpot: Undigested[str | None] = None

    def digest_values(self) -> dict[str, Any]:
        """Return the settings that can change a result; files are identified by their content."""
        values = super().digest_values()
        if values["haystack"] not in ("library", "held_out"):
            del values["haystack"]
        return values


class ShortConfig(Section):
    """Which short-text tasks run: a packaged suite, or a suite's YAML file by path.

    `num_samples` applies to local tasks; `limit` caps the samples of lm-eval tasks, in addition to
    the suite's own limits. `capacities` and `tasks` select a part of the suite. A task without
    available data ends the stage (`on_missing: error`) or is reported as n/a (`skip`).
    """

    suite: str = "demo"
    num_samples: Count = 200
    limit: Count | None = None
    capacities: list[str] = []
    tasks: list[str] = []
    on_missing: Literal["error", "skip"] = "error"
    allow_code_execution: bool = False


class PerplexityConfig(Section):
    """Perplexity by position on held-out text, at these lengths (tokens); none by default.

    Each length reads `num_tokens`. A `judge` (a model folder or pinned hub name with the same
    tokenizer) adds LongPPL: perplexity on the tokens that the judge predicts much better from the
    whole preceding text than from `short_context` tokens (`original_window` if None).
    """

    lengths: list[Count] = []
    num_tokens: Count = 65536
    num_bins: Count = 16
    judge: Undigested[str | None] = None
    judge_revision: Undigested[str | None] = None
    short_context: Count | None = None


class EvaluationConfig(Section):
    """How every model is evaluated, on the same frozen samples.

    `backend: vllm` generates answers with vLLM, after checking that they equal those of
    transformers (`hf`); it takes `vllm_memory_fraction` of the GPU beside the model itself.

    `kept` also evaluates the students of `training.keep_steps`, which shows what a training
    restores and forgets over its steps.
    """

    references: list[Literal["original", "rescaled"]] = ["original", "rescaled"]
    ruler: RulerConfig = RulerConfig()
    short: ShortConfig = ShortConfig()
    perplexity: PerplexityConfig = PerplexityConfig()
    kept: bool = False
    similarity_tokens: Count = 16384
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    chat_template: Literal["auto", "true", "false"] = "auto"
    backend: Literal["hf", "vllm"] = "hf"
    vllm_memory_fraction: Undigested[Share] = 0.6
    original_window: int = 0
    target_window: int = 0
    seed: int = 0
    batch_size: Undigested[Count] = 8
    device: Undigested[Device] = "auto"
    attention_backend: Undigested[str] = "auto"
    num_processes: Undigested[Count] = 1
