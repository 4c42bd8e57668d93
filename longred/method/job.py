"""What a training is made of: plain values that travel to the trainer's process as JSON."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from longred.errors import ConfigError
from longred.method.kept import kept_problem
from longred.method.layout import Layout
from longred.method.methods import METHODS, Method, Term, method_terms
from longred.method.schedules import schedule_problem

DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "adamw8bit")
WEIGHTS = ("fixed", "auto")
CHECKPOINTING = ("none", "selective", "full")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """One student to train by one method.

    Attributes:
        method: a name of `longred.method.methods.METHODS`.
        data_folder: folder of the data stage (blocks of the buckets).
        student_folder: folder of the extension stage, or any Hugging Face folder.
        teacher_folder: the original model; read only by methods that distil.
        data_digest: identity of the data; a checkpoint made on other data is refused.
        distill_layers: `hidden_states` indices 1…N whose states are distilled on short blocks.
        rows: blocks of each bucket in one optimizer step; exactly the buckets of the method.
        ratio: token ratio of the buckets, from which the losses' weights follow.
        original_window: block length of the original bucket, tokens.
        target_window: block length of the long bucket, tokens.
        num_steps: optimizer steps.
        micro_batch_tokens: most tokens of one forward and backward; a row is never cut.
        short_micro_batch_tokens: the same for short and original rows; 0 for no other number.
        learning_rate: the highest, reached after `warmup_steps` of linear warm-up.
        schedule: a key of `longred.method.schedules.SCHEDULES`: what follows the warm-up.
        decay_steps: last steps in which schedule `wsd` falls.
        min_learning_rate: of the last step, where the schedule falls.
        optimizer: a key of `longred.training.optimizer.OPTIMIZERS`.
        optimizer_offload: whether the optimizer's state is kept in host memory; same bits.
        activation_checkpointing: one of `layers.activations.CHECKPOINTING`; same bits.
        uncheckpointed_tokens: micro-batches of at most so many tokens hold all activations.
        mlp_tile_tokens: tokens of an MLP's tile, see `layers.mlp_tiles`; 0 for no tiles.
        fused: whether norms, RoPE and gated MLPs are computed by `layers.fused`; the last bits.
        compile: whether decoder layers are compiled instead, see `layers.compiling`.
        deterministic: whether only kernels are used that give the same bits every time.
        spike_mads: see `longred.training.spikes`; a loss that leaps so far up is told of.
        halt_after_spikes: so many in a row end the training; 0 for never.
        max_grad_norm: gradients are scaled down to this global norm.
        short_distill_weight: alpha 1 of the paper.
        short_to_long_weight: alpha 2 of the paper.
        attention_distill_weight: of the relations' distillation on short blocks; 0 leaves it out.
        long_distill_weight: of the last layer's distillation on long blocks; 0 leaves it out.
        weighting: `token_share` or `formula`, see `longred.objectives.table.loss_weights`.
        weights: `fixed`, or `auto`: see `longred.training.balance`.
        weights_every_steps: steps from one measurement of `auto` to the next.
        lora: `rank`, `alpha`, `targets` of the adapters, and `objectives`, the method whose terms
            they are trained on; empty for methods that train the weights.
        sigma: spread of the skipped positions of kind `cream`.
        truncation: `clipped` or `renormalised`, see `longred.method.positions.skip_positions`.
        mask_documents: whether attention and targets stop at document boundaries inside a block.
        dtype: compute type; weights and gradients are float32 always.
        fp8: whether the decoder's linear layers take their products in 8-bit floats.
        seed: draws the order of blocks and the skipped positions.
        save_every_steps: steps between checkpoints.
        num_checkpoints: newest checkpoints that are kept.
        keep_steps: steps after which the student is kept as a model folder of its own.
        num_threads: CPU threads; 0 leaves the choice to torch. It can change the last bits.
        device: `cpu`, `cuda` or `auto`.
        attention_backend: `auto` or a key of `longred.attention.backends.BACKENDS`.
        parallel: the values of a `longred.method.layout.Layout`. They change the last bits.

    Raises:
        ConfigError: a value cannot work; the message names it as `training.<name>`.
    """

    method: str
    data_folder: str
    student_folder: str
    teacher_folder: str
    data_digest: str
    rows: Mapping[str, int]
    original_window: int
    target_window: int
    num_steps: int
    distill_layers: tuple[int, ...] = ()
    ratio: Mapping[str, int] = field(default_factory=lambda: {"long": 4, "short": 3, "original": 1})
    micro_batch_tokens: int = 32768
    short_micro_batch_tokens: int = 0
    learning_rate: float = 2e-5
    warmup_steps: int = 0
    schedule: str = "constant"
    decay_steps: int = 0
    min_learning_rate: float = 0.0
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    short_distill_weight: float = 5.0
    short_to_long_weight: float = 10.0
    attention_distill_weight: float = 0.0
    long_distill_weight: float = 0.0
    weighting: str = "token_share"
    weights: str = "fixed"
    weights_every_steps: int = 20
    lora: Mapping[str, Any] = field(default_factory=dict)
    sigma: float = 5.0
    truncation: str = "clipped"
    mask_documents: bool = True
    dtype: str = "bfloat16"
    fp8: bool = False
    seed: int = 0
    keep_steps: tuple[int, ...] = ()
    save_every_steps: int = field(default=20, metadata={"runtime": True})
    num_checkpoints: int = field(default=2, metadata={"runtime": True})
    num_threads: int = field(default=0, metadata={"runtime": True})
    device: str = field(default="auto", metadata={"runtime": True})
    optimizer_offload: bool = field(default=False, metadata={"runtime": True})
    activation_checkpointing: str = field(default="none", metadata={"runtime": True})
    uncheckpointed_tokens: int = field(default=8192, metadata={"runtime": True})
    mlp_tile_tokens: int = field(default=0, metadata={"runtime": True})
    fused: bool = field(default=True, metadata={"runtime": True})
    compile: bool = field(default=False, metadata={"runtime": True})
    deterministic: bool = field(default=False, metadata={"runtime": True})
    spike_mads: float = field(default=10.0, metadata={"runtime": True})
    halt_after_spikes: int = field(default=3, metadata={"runtime": True})
    attention_backend: str = field(default="auto", metadata={"runtime": True})
    parallel: Mapping[str, int] = field(default_factory=dict, metadata={"runtime": True})

    def __post_init__(self) -> None:
        """Freeze the sequences and refuse values that cannot work."""
        # JSON gives lists; equal jobs must compare equal wherever they come from.
        object.__setattr__(self, "distill_layers", tuple(self.distill_layers))
        object.__setattr__(self, "keep_steps", tuple(self.keep_steps))
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "rows", dict(self.rows))
        object.__setattr__(self, "ratio", dict(self.ratio))
        object.__setattr__(self, "lora", dict(self.lora))
        object.__setattr__(self, "parallel", dict(self.parallel))
        if self.method not in METHODS:
            raise ConfigError(
                f"training.method: {self.method!r} is not one of {', '.join(METHODS)}"
            )
        if METHODS[self.method].trains_adapters and self.lora.get("objectives") not in METHODS:
            raise ConfigError(f"training.lora: {self.method} needs adapters, got {self.lora}")
        self._check_numbers()
        problem = (
            schedule_problem(self)
            or kept_problem(self)
            or self._parallel_problem()
            or fp8_problem(self.fp8, dtype=self.dtype, trains_adapters=self.recipe.trains_adapters)
        )
        if problem:
            raise ConfigError(problem)
        buckets = self.recipe.buckets()
        if set(self.rows) != set(buckets) or min(self.rows.values()) < 1:
            raise ConfigError(
                f"training.rows: {self.method} needs rows of {', '.join(buckets)}, got {self.rows}"
            )
        if not set(buckets) <= set(self.ratio):
            raise ConfigError(f"training.ratio: must name {', '.join(buckets)}, got {self.ratio}")
        if self.recipe.uses_layers() and not self.distill_layers:
            raise ConfigError(f"training.distill_layers: {self.method} needs at least one layer")

    def _check_numbers(self) -> None:
        at_least_one = (
            "num_steps",
            "micro_batch_tokens",
            "save_every_steps",
            "num_checkpoints",
            "weights_every_steps",
            "original_window",
        )
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name}: must be 1 or more, got {getattr(self, name)}")
        if self.spike_mads <= 0:
            raise ConfigError(f"training.spike_mads: must be above 0, got {self.spike_mads}")
        at_least_zero = (
            "short_micro_batch_tokens",
            "uncheckpointed_tokens",
            "mlp_tile_tokens",
            "halt_after_spikes",
        )
        for name in at_least_zero:
            if getattr(self, name) < 0:
                raise ConfigError(f"training.{name}: must be 0 or more, got {getattr(self, name)}")
        choices = (
            ("dtype", DTYPES),
            ("device", DEVICES),
            ("optimizer", OPTIMIZERS),
            ("weights", WEIGHTS),
            ("activation_checkpointing", CHECKPOINTING),
        )
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"training.{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}"
                )

    def _parallel_problem(self) -> str | None:
        unknown = self.parallel.keys() - {item.name for item in dataclasses.fields(Layout)}
        if unknown:
            return f"training.parallel.{min(unknown)}: unknown value"
        return self.layout.problem()

    @property
    def layout(self) -> Layout:
        """How the training is divided over processes."""
        return Layout(**self.parallel)

    @property
    def recipe(self) -> Method:
        """What the method does with each bucket."""
        return method_terms(self.method, self.lora.get("objectives", ""))

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms of the loss, without optional ones of weight 0."""
        return tuple(
            term
            for term in self.recipe.terms
            if not (term.is_optional and term.weight and getattr(self, term.weight) == 0)
        )

    def uses_teacher(self) -> bool:
        """Return whether a term of the loss runs the teacher."""
        return any(term.objective != "cross_entropy" for term in self.terms)

    @classmethod
    def fields(cls) -> frozenset[str]:
        """Return the names of all values."""
        return frozenset(item.name for item in dataclasses.fields(cls))

    def identity(self) -> dict[str, Any]:
        """Return the values that can change the result; a checkpoint belongs to exactly these.

        Folders are left out, so that a store can be moved; `data_digest` stands for the data.
        """
        left_out = {"data_folder", "student_folder", "teacher_folder"}
        left_out |= {item.name for item in dataclasses.fields(self) if item.metadata.get("runtime")}
        return {name: value for name, value in self.to_json().items() if name not in left_out}

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        values = {name: getattr(self, name) for name in sorted(self.fields())}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainingJob":
        """Return the job that `to_json` wrote.

        Raises:
            ConfigError: a value is unknown, missing or cannot work.
        """
        unknown = sorted(set(values) - cls.fields())
        if unknown:
            raise ConfigError(
                f"training.{unknown[0]}: unknown value; known: {', '.join(sorted(cls.fields()))}"
            )
        required = {
            item.name
            for item in dataclasses.fields(cls)
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        }
        missing = sorted(required - set(values))
        if missing:
            raise ConfigError(f"training.{missing[0]}: is required")
        return cls(**values)


def fp8_problem(fp8: bool, *, dtype: str, trains_adapters: bool) -> str | None:
    """Return what speaks against 8-bit floats in a training, or None."""
    if fp8 and dtype != "bfloat16":
        return f"training.fp8: needs training.dtype bfloat16, got {dtype}"
    if fp8 and trains_adapters:
        return (
            "training.fp8: cannot be had with adapters, whose teacher is the student without them "
            "and would be rounded too; set it to false, or train another method"
        )
    return None
