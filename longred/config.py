"""What a run is made of: one frozen section per stage, read from a recipe and dotted overrides."""

import difflib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from longred.errors import ConfigError
from longred.methods import METHODS
from longred.recipes import Recipe, read_recipe
from longred.recipes.checks import problems

COPIES = {
    "seed": "seed",
    "original_window": "original_window",
    "target_window": "target_window",
    "short_length": "data.short_length",
    "ratio": "data.ratio",
}
"""What sections hold copies of, filled at load: field → the key that a user sets."""

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Bucket = Literal["long", "short", "original"]
MethodName = Literal["longred-c", "longred-u", "cpt", "mix-cpt"]
Device = Literal["auto", "cpu", "cuda"]


def _runtime(default: Any, **constraints: Any) -> Any:
    """Declare a field that cannot change a result and so stays out of every digest."""
    return Field(default, json_schema_extra={"runtime": True}, **constraints)


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    def digest_values(self) -> dict[str, Any]:
        """Return the settings that can change a result, as plain JSON values."""
        values: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("runtime"):
                continue
            value = getattr(self, name)
            values[name] = value.digest_values() if isinstance(value, Section) else _plain(value)
        return values


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.digest_values()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


class ModelConfig(Section):
    """The original model: `demo`, a Hugging Face folder, or a hub name with a pinned revision."""

    path: str = "demo"
    revision: str | None = None


class SourceConfig(Section):
    """A named corpus and its share of each bucket's tokens.

    `library` is the running Python's standard library; `practice` the demo's skill exercises
    (`length` tokens each); `files` a file, folder or glob of txt, md, py, jsonl(.gz) or parquet;
    `hub` a Hugging Face dataset at a pinned revision.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    kind: Literal["library", "practice", "files", "hub"]
    path: str | None = None
    revision: str | None = None
    subset: str | None = None
    split: str = "train"
    text_field: str = "text"
    length: Count | None = None
    buckets: dict[Bucket, NonNegative] = {"long": 1.0, "short": 1.0, "original": 1.0}

    def digest_values(self) -> dict[str, Any]:
        """Return the settings that can change a result; local text is known by its content."""
        values = super().digest_values()
        if self.kind == "files":
            del values["path"]
        return values


class DataConfig(Section):
    """Which text fills the long, short and original buckets, and how much of it.

    `num_tokens` is the number of training tokens written, divided over the buckets by `ratio`.
    Windows and seed are the run's own (top level of the recipe).
    """

    sources: list[SourceConfig] = Field(min_length=1)
    num_tokens: Count
    ratio: dict[Bucket, Count] = {"long": 4, "short": 3, "original": 1}
    short_length: Count = 1024
    min_long_tokens: Count | None = None
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    num_held_out_tokens: Count = 65536
    add_bos: bool = True
    max_rejected_fraction: Share = 0.001
    original_window: int = 0
    target_window: int = 0
    seed: int = 0


class ExtensionConfig(Section):
    """How RoPE is rescaled: `abf` raises rope_theta, `pi` interpolates positions linearly."""

    method: Literal["abf", "pi"] = "abf"
    rope_theta: Positive | None = None
    original_window: int = 0
    target_window: int = 0


class ProfilingConfig(Section):
    """How much held-out short text the drift of attention and hidden states is measured on."""

    num_tokens: Count = 16384
    batch_rows: Count = _runtime(8, ge=1)
    device: Device = _runtime("auto")


class SelectionConfig(Section):
    """Which layers are distilled; `num_distill_layers` counts the last one."""

    strategy: Literal["attention_kl", "uniform", "manual"] = "attention_kl"
    num_distill_layers: Count = 6
    layers: list[Count] | None = None


class TrainingConfig(Section):
    """How students are trained: the method, its baselines, and what they share.

    `step_tokens` is divided over the buckets by `data.ratio`; methods that use only the long bucket
    spend all of it there. `learning_rate` is constant after `warmup_steps`.
    """

    method: MethodName = "longred-c"
    baselines: list[MethodName] = []
    num_steps: Count = 512
    step_tokens: Count = 2097152
    micro_batch_tokens: Count = 32768
    learning_rate: Positive = 2e-5
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    betas: tuple[Share, Share] = (0.9, 0.95)
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.1
    max_grad_norm: Positive = 1.0
    short_distill_weight: NonNegative = 5.0
    short_to_long_weight: NonNegative = 10.0
    weighting: Literal["token_share", "formula"] = "token_share"
    sigma: Positive = 5.0
    truncation: Literal["clipped", "renormalised"] = "clipped"
    mask_documents: bool = True
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    activation_checkpointing: bool = False
    original_window: int = 0
    target_window: int = 0
    short_length: int = 0
    ratio: dict[str, int] = {}
    seed: int = 0
    save_every_steps: Count = _runtime(20, ge=1)
    num_checkpoints: Count = _runtime(2, ge=1)
    num_threads: Annotated[int, Field(ge=0)] = _runtime(0, ge=0)
    device: Device = _runtime("auto")

    def methods(self) -> list[str]:
        """Return the method and its baselines, each once, in the order of training."""
        return list(dict.fromkeys([self.method, *self.baselines]))

    def block_lengths(self) -> dict[str, int]:
        """Return the block length of each bucket, in tokens."""
        return {
            "long": self.target_window,
            "short": self.short_length,
            "original": self.original_window,
        }

    def bucket_tokens(self, method: str) -> dict[str, Fraction]:
        """Return the exact share of `step_tokens` that a method reads from each bucket."""
        share = {bucket: self.ratio[bucket] for bucket in METHODS[method].buckets()}
        return {b: Fraction(self.step_tokens * share[b], sum(share.values())) for b in share}

    def rows(self, method: str) -> dict[str, int]:
        """Return how many blocks of each bucket one optimizer step of a method reads."""
        lengths = self.block_lengths()
        return {
            bucket: int(tokens) // lengths[bucket]
            for bucket, tokens in self.bucket_tokens(method).items()
        }


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
    batch_size: Count = _runtime(8, ge=1)
    device: Device = _runtime("auto")


class ReportConfig(Section):
    """How scores are compared; tasks that the original barely solves are dropped first."""

    title: str = "Restoration after context extension"
    min_points_above_chance: NonNegative = 10.0


class StoreConfig(Section):
    """Where artifacts, work in progress and run records are kept."""

    path: str = _runtime("outputs")


class TrackingConfig(Section):
    """Where MLflow keeps the runs; without a `uri`, in an SQLite file inside the store."""

    uri: str | None = _runtime(None)
    experiment: str = _runtime("longred")


class RunConfig(Section):
    """A whole run; windows and seed are said once and copied into the sections that use them."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    seed: Annotated[int, Field(ge=0)] = 0
    original_window: Count
    target_window: Count
    model: ModelConfig = ModelConfig()
    data: DataConfig
    extension: ExtensionConfig = ExtensionConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    selection: SelectionConfig = SelectionConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig
    report: ReportConfig = ReportConfig()
    store: StoreConfig = StoreConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _copy_shared_values(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        result = dict(values)
        shared = {key: result[key] for key in COPIES if key in result and key in cls.model_fields}
        data = result.get("data")
        if isinstance(data, Mapping):
            for key in ("short_length", "ratio"):
                shared[key] = data.get(key, DataConfig.model_fields[key].default)
        for name, field in cls.model_fields.items():
            section = result.get(name, {})
            kind = field.annotation
            if not (
                isinstance(kind, type)
                and issubclass(kind, Section)
                and isinstance(section, Mapping)
            ):
                continue
            copies = {k: v for k, v in shared.items() if k in kind.model_fields}
            if name == "data":
                copies = {k: v for k, v in copies.items() if k not in ("short_length", "ratio")}
            for key in copies.keys() & section.keys():
                if section[key] != copies[key]:
                    owner = COPIES[key]
                    raise ValueError(f"{name}.{key}: is a copy of {owner}; set {owner} instead")
            result[name] = {**section, **copies}
        return result

    @model_validator(mode="after")
    def _check(self) -> Self:
        for problem in problems(self):
            raise ValueError(problem)
        return self


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a packaged recipe or a YAML file and apply dotted overrides.

    Args:
        name_or_path: a recipe's name (`demo`) or the path of a YAML file.
        overrides: `section.key=value` strings; values are read as YAML.

    Raises:
        ConfigError: the recipe does not exist or cannot be read, a key is unknown, a value
            has the wrong type or cannot work; the message names the dotted key.
    """
    recipe = read_recipe(str(name_or_path), overrides)
    try:
        return RunConfig.model_validate(recipe.values)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_describe(problem, recipe) for problem in error.errors())
        ) from None


def _describe(problem: Any, recipe: Recipe) -> str:
    """Turn one validation problem into a message that names the dotted key and says what to do."""
    location = tuple(part for part in problem["loc"] if part != "[key]")
    key = ".".join(str(part) for part in location)
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not location:
        key, _, message = message.partition(": ")
    elif problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=3)
        advice = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known)}"
        message = f"unknown key; {advice}"
    elif problem["type"] == "missing":
        message = "is required"
    else:
        message = f"{message} (got {problem['input']!r})"
    place = f" ({recipe.path}:{recipe.lines[key]})" if key in recipe.lines else ""
    return f"{key}: {message}{place}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Return the keys allowed at a location of the configuration."""
    kind: Any = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        kind = next(
            (a for a in (annotation, *arguments) if isinstance(a, type) and issubclass(a, Section)),
            kind,
        )
    copies = {} if kind is RunConfig else COPIES
    return [
        name
        for name in kind.model_fields
        if name not in copies or copies[name].startswith(f"{location[-1]}.")
    ]
