"""How models are evaluated: RULER, short-text tasks, perplexity."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from longred.config.section import Section
from longred.method.values import Bounds, ByContent, Count, Device, Share, Undigested

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

RULER_V2_TASKS = (
    "v2_mk_niah_basic",
    "v2_mk_niah_easy",
    "v2_mk_niah_medium",
    "v2_mk_niah_hard",
    "v2_mv_niah_basic",
    "v2_mv_niah_easy",
    "v2_mv_niah_medium",
    "v2_mv_niah_hard",
    "v2_qa_basic",
    "v2_qa_easy",
    "v2_qa_medium",
    "v2_qa_hard",
)

TASK_GROUPS = {"ruler": RULER_TASKS, "ruler-v2": RULER_V2_TASKS}
"""Name → RULER tasks that it stands for."""

MMLU_TASKS = tuple(task for task in RULER_V2_TASKS if "niah" in task and not task.endswith("basic"))
"""RULER tasks that ask questions of MMLU."""

NO_MMLU = (
    "no questions of MMLU are packaged; name cais/mmlu, or the folder of its files test* and "
    "auxiliary_train*, or leave these tasks out"
)


MAX_SHORT_WINDOW = 1024
"""Most tokens of a local short task's prompt, unless evaluation.short_window says otherwise."""


class RulerConfig(Section):
    """Retrieval and reasoning over long text: which RULER tasks run, at which lengths."""

    tasks: list[str] = Field(
        default=list(RULER_TASKS),
        description="RULER tasks by name; ruler stands for all 13. kv_retrieval, in no average, "
        "can be added, and ruler-v2 for the 12 tasks of RULER v2, with an average of their own. "
        "Fewer tasks cost less time.",
        examples=[["niah_single_1", "vt"]],
    )
    lengths: list[Count] = Field(
        default=[],
        description="Lengths of the prompts in tokens, none above target_window.",
        examples=[[8192, 32_768]],
    )
    num_samples: Count = Field(
        default=100,
        description="Number of samples of each task at each length; fewer are faster and less "
        "certain.",
    )
    parameters: Literal["auto", "full", "compact"] = Field(
        default="auto",
        description="full are RULER's own parameters, compact smaller ones for short windows; "
        "auto is compact below 4,096 tokens.",
    )
    revision: Literal["paper", "current"] = Field(
        default="current", description="RULER's wording: of the paper of 2024, or its current one."
    )
    haystack: str = Field(
        default="library",
        description="Text that needles are hidden in: Python's documentation (library), the "
        "data's held-out documents (held_out), or the path of a file or folder.",
        examples=["held_out"],
    )
    squad: ByContent[str | None] = Field(
        default=None,
        description="Questions for task qa_1: a file in SQuAD's form, rows in the hub's form "
        "(jsonl, parquet), a dataset's folder, or its name on the hub; null for a small packaged "
        "set.",
        examples=["/data/squad/dev-v2.0.json", "rajpurkar/squad_v2"],
    )
    squad_revision: ByContent[str | None] = Field(
        default=None,
        description="Commit of squad on the hub, 40 hexadecimal digits.",
        examples=["3ffb306f725f7d2ce8394bc1873b24868140c412"],
    )
    squad_subset: ByContent[str | None] = Field(
        default=None,
        description="Subset of squad, if it is a dataset; null for its only one.",
        examples=["squad_v2"],
    )
    squad_split: ByContent[str] = Field(
        default="validation", description="Split of squad, if it is a dataset."
    )
    hotpot: ByContent[str | None] = Field(
        default=None,
        description="Questions for task qa_2: a file in HotpotQA's form, rows in the hub's form "
        "(jsonl, parquet), a dataset's folder, or its name on the hub; null for a small packaged "
        "set.",
        examples=["/data/hotpot/dev_distractor_v1.json", "hotpotqa/hotpot_qa"],
    )
    hotpot_revision: ByContent[str | None] = Field(
        default=None,
        description="Commit of hotpot on the hub, 40 hexadecimal digits.",
        examples=["1908d6afbbead072334abe2965f91bd2709910ab"],
    )
    hotpot_subset: ByContent[str | None] = Field(
        default="distractor",
        description="Subset of hotpot, if it is a dataset; null for its only one.",
    )
    hotpot_split: ByContent[str] = Field(
        default="validation", description="Split of hotpot, if it is a dataset."
    )
    mmlu: ByContent[str | None] = Field(
        default=None,
        description="Questions for the tasks of RULER v2 that ask MMLU, as rows in the hub's form: "
        "a dataset's folder with the splits test (asked) and auxiliary_train (around them), its "
        "name on the hub, or one file (jsonl, parquet) whose questions surround each other.",
        examples=["/data/mmlu", "cais/mmlu"],
        validate_default=True,
    )
    mmlu_revision: ByContent[str | None] = Field(
        default=None,
        description="Commit of mmlu on the hub, 40 hexadecimal digits.",
        examples=["c30699e8356da336a370243923dbaf21066bb9fe"],
    )
    count_builtin: bool = Field(
        default=False,
        description="Whether tasks on the packaged questions (qa_1, qa_2, v2_qa_*) count in the "
        "averages of RULER and RULER v2; the packaged sets are small.",
    )
    kv_keys: Annotated[int, Bounds(ge=2)] | None = Field(
        default=None,
        description="Number of keys of kv_retrieval: 75, 140 or 300 as published; null fills the "
        "prompts to their length.",
        examples=[140],
    )
    kv_records: ByContent[str | None] = Field(
        default=None,
        description="Published file of kv_retrieval, kv-retrieval-140_keys.jsonl or .jsonl.gz, "
        "whose samples are asked as they are; null generates samples.",
        examples=["/data/kv-retrieval-140_keys.jsonl.gz"],
    )

    @field_validator("tasks")
    @classmethod
    def _expand_groups(cls, tasks: list[str]) -> list[str]:
        expanded = [name for task in tasks for name in TASK_GROUPS.get(task, (task,))]
        return [*dict.fromkeys(expanded)]

    @field_validator("mmlu")
    @classmethod
    def _check_mmlu(cls, path: str | None, info: ValidationInfo) -> str | None:
        asking = [task for task in info.data.get("tasks", ()) if task in MMLU_TASKS]
        if asking and path is None:
            raise ValueError(f"{asking[0]} asks questions, but {NO_MMLU}")
        return path

    @model_validator(mode="after")
    def _refuse_two_numbers_of_keys(self) -> Self:
        if self.kv_keys is not None and self.kv_records is not None:
            raise ValueError(
                "kv_keys: the samples of kv_records have their own number of keys; give one of the "
                "two settings"
            )
        return self

    def digest_values(self) -> dict[str, Any]:
        """Return the settings that can change a result; files are identified by their content."""
        values = super().digest_values()
        if values["haystack"] not in ("library", "held_out"):
            del values["haystack"]
        # Where these are off, samples and scores are those of a version without them.
        off = {"count_builtin": False, "kv_keys": None}
        return {key: value for key, value in values.items() if off.get(key, ...) != value}


class ShortConfig(Section):
    """Which short-text tasks show what the model has kept."""

    suite: str = Field(
        default="demo",
        description="Name of a packaged suite of short tasks (demo, paper, short-core, longbench, "
        "…), or the path of a suite's YAML file.",
        examples=["short-core"],
    )
    data_folder: ByContent[str | None] = Field(
        default=None,
        description="Folder of the files of a suite that names {folder} in its paths, such as "
        "helmet; its first lines say where to get them.",
        examples=["/data/helmet"],
    )
    num_samples: Count = Field(
        default=200,
        description="Number of samples of each local task; lm-eval tasks have limit instead.",
    )
    limit: Count | None = Field(
        default=None,
        description="Most samples of each task of lm-eval or a published benchmark, in addition to "
        "the suite's own limits; "
        "null for no other limit.",
        examples=[100],
    )
    capacities: list[str] = Field(
        default=[],
        description="Capacities (groups of tasks) of the suite that run; empty for all.",
        examples=[["general", "reading"]],
    )
    tasks: list[str] = Field(
        default=[], description="Tasks of the suite that run; empty for all.", examples=[["cloze"]]
    )
    on_missing: Literal["error", "skip"] = Field(
        default="error",
        description="What a task without available data does: it ends the stage (error), or is "
        "reported as n/a (skip).",
    )
    allow_code_execution: bool = Field(
        default=False,
        description="Whether tasks may execute code that the model wrote, on this machine; some "
        "coding tasks need it.",
    )


class PerplexityConfig(Section):
    """Perplexity by position on held-out text; none by default."""

    lengths: list[Count] = Field(
        default=[],
        description="Lengths of the texts in tokens, none above target_window; empty leaves the "
        "measurement out.",
        examples=[[8192, 32_768]],
    )
    num_tokens: Count = Field(
        default=65536, description="Number of held-out tokens read at each length."
    )
    num_bins: Count = Field(
        default=16,
        description="Number of equal parts of a text whose perplexity is shown separately.",
    )
    judge: ByContent[str | None] = Field(
        default=None,
        description="Model folder or name on the hub, with the same tokenizer, that adds LongPPL: "
        "perplexity on the tokens that it predicts much better from all preceding text.",
        examples=["meta-llama/Meta-Llama-3-8B"],
    )
    judge_revision: ByContent[str | None] = Field(
        default=None,
        description="Commit of a judge on the hub, 40 hexadecimal digits.",
        examples=["8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920"],
    )
    short_context: Count | None = Field(
        default=None,
        description="Tokens of the judge's short context, which all preceding text is compared "
        "with; null is original_window.",
        examples=[4096],
    )


def _allow_booleans(schema: dict[str, Any]) -> None:
    """Let YAML's true and false stand for the texts."""
    del schema["type"]
    schema["enum"] += [True, False]


class EvaluationConfig(Section):
    """How every model is evaluated, on the same frozen samples."""

    references: list[Literal["original", "rescaled", "self-extend", "dual-chunk"]] = Field(
        default=["original", "rescaled"],
        description="Models that are evaluated beside the students: the original one, the rescaled "
        "one before training, and the original with attention that brings far positions into its "
        "window (self-extend, dual-chunk; plain RoPE only, no training). Retention needs original.",
    )
    ruler: RulerConfig = RulerConfig()
    short: ShortConfig = ShortConfig()
    perplexity: PerplexityConfig = PerplexityConfig()
    kept: bool = Field(
        default=False,
        description="Whether the students of training.keep_steps are evaluated too, which shows "
        "what a training restores and forgets over its steps.",
    )
    similarity_tokens: Count = Field(
        default=16384,
        description="Number of held-out tokens on which each model's hidden states and loss are "
        "compared with the original's.",
    )
    short_window: Count | None = Field(
        default=None,
        description="Tokens of a prompt of the local short tasks with its answer, and of a row of "
        "held-out text; null is original_window, at most 1,024 for short tasks.",
        examples=[512],
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16",
        description="Type of weights and computation; float32 is faster on CPUs without bfloat16 "
        "units.",
    )
    chat_template: Literal["auto", "true", "false"] = Field(
        default="auto",
        description="Whether generation tasks are asked through the tokenizer's chat template; "
        "auto does so for models that end turns as the template does.",
        examples=[True],
        json_schema_extra=_allow_booleans,
    )
    add_bos_token: bool | None = Field(
        default=None,
        description="Whether prompts start with the BOS token; null is data.add_bos, or what the "
        "tokenizer does.",
        examples=[True],
    )
    backend: Literal["hf", "vllm"] = Field(
        default="hf",
        description="What generates answers: transformers (hf), or vllm, which is much faster on a "
        "GPU and must first get the same scores (lm-eval's tasks are not compared).",
    )
    vllm_memory_fraction: Undigested[Share] = Field(
        default=0.6,
        description="Share of the GPU's memory that vLLM takes, beside the model itself.",
    )
    original_window: int = 0
    target_window: int = 0
    seed: int = 0
    batch_tokens: Undigested[Count | Literal["auto"]] = Field(
        default="auto",
        description="Number of tokens of prompts and answers at once; auto takes what fits into "
        "memory. It is halved where memory runs out.",
        examples=[65_536],
    )
    device: Undigested[Device] = Field(
        default="auto", description="Device of the evaluation; auto takes a GPU if there is one."
    )
    attention_backend: Undigested[str] = "auto"
    num_processes: Undigested[Count] = Field(
        default=1,
        description="Number of processes that divide a model's tasks, each with a whole model and "
        "on GPUs with a GPU of its own.",
    )

    @property
    def local_window(self) -> int:
        """Tokens of a prompt of the local short tasks with its answer."""
        return min(self.short_window or MAX_SHORT_WINDOW, self.original_window)

    @property
    def text_window(self) -> int:
        """Tokens of a row of held-out text."""
        return min(self.short_window or self.original_window, self.original_window)

    @field_validator("chat_template", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value).lower() if isinstance(value, bool) else value
