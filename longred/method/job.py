"""One training as plain values, which travel to the trainer's process as JSON.

`TrainingSettings` is what a recipe's `training` section and a job share: fields, defaults, limits
and the rules between them. `TrainingJob` adds what one training needs besides: folders, rows of a
step, distilled layers.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal, get_type_hints

from longred.errors import ConfigError, shown
from longred.method.layout import Layout
from longred.method.methods import METHODS, Method, Term, Trained, method_problem, method_terms
from longred.method.values import (
    UNDIGESTED,
    Count,
    CountOrZero,
    Device,
    NonNegative,
    Positive,
    Share,
    Undigested,
    value_problem,
)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings that a recipe's `training` section and a job share.

    The recipe's section takes its descriptions from here: plain words, at most 300 characters.

    Attributes:
        num_steps: number of optimizer steps of each training; it reads num_steps x step_tokens
            tokens. More than about one epoch of the text repeats it.
        micro_batch_tokens: most tokens of one forward and backward pass. Rows are never cut: a
            longer row makes a pass alone. Lower it if GPU memory runs out.
        short_micro_batch_tokens: most tokens of a pass over short or original rows; 0 takes
            micro_batch_tokens. Small passes need less memory and may keep all activations.
        trained: which weights are trained. attention trains only the linear layers inside
            self-attention (queries, keys, values, output); embeddings, norms, MLPs and LM head
            keep their bits and need neither gradients nor optimizer state.
        learning_rate: peak learning rate, reached after the warm-up. 2e-5 suits models of billions
            of parameters; small models need more.
        warmup_steps: number of first steps, in which the learning rate rises linearly to its peak.
        schedule: what follows the warm-up. constant keeps the peak, cosine falls over all remaining
            steps, and wsd falls linearly in the last decay_steps.
        decay_steps: number of last steps, in which schedule wsd falls. Needed with wsd, and allowed
            only there.
        min_learning_rate: learning rate of the last step, for the schedules that fall.
        optimizer: AdamW; adamw8bit stores its moments in 8 bits, a quarter of the memory, and needs
            the package torchao.
        betas: decay rates of AdamW's first and second moment.
        epsilon: number added to the denominator of AdamW's update, against division by zero.
        weight_decay: decay of weight matrices in AdamW. Each step shrinks them by this share times
            the learning rate; vectors such as norms do not decay unless decay_norms is set.
        decay_norms: whether weight_decay also shrinks vectors: norms and biases. The LongReD
            authors' optimizer had one group of parameters, and decayed them.
        max_grad_norm: largest global L2 norm of the gradients; larger ones are scaled down to it.
        short_distill_weight: weight of the loss that distils hidden states on short blocks, alpha 1
            of the LongReD paper.
        short_to_long_weight: weight of the loss that distils the last hidden state on original
            blocks at skipped positions, alpha 2 of the LongReD paper.
        attention_distill_weight: weight of the extra loss that distils the attention relations of
            all layers on short blocks; 0 leaves it out.
        long_distill_weight: weight of the extra loss that distils the last hidden state on the
            first original window of every long document; 0 leaves it out.
        relation_heads: number of heads that divides the sum over a relation's heads in attention
            distillation. own divides each by its own, query all by the query heads, as LinearARD's
            code does, which counts grouped keys and values less.
        logit_distill_weight: weight of the loss that distils next-token distributions on short and
            original blocks; null is the method's own, 1 in logit-distill and 0 elsewhere, which
            leaves it out.
        logit_distill_temperature: number that divides the logits of both models before they are
            compared; the loss is multiplied by its square. 1 compares what the models predict.
        weighting: how weights relate to tokens. token_share multiplies each by its bucket's tokens
            per token of the long bucket, as the published training did; formula takes them as
            given.
        weights: whether distillation weights are fixed, or scaled during training so that each
            loss has the gradient norm of the text loss (auto). A weight of 0 stays out.
        weights_every_steps: number of steps between two measurements with weights auto; each costs
            the time of one more step.
        truncation: what happens to skipped positions that would fall outside the window, in
            longred-c and cream. clipped piles them up at its ends, as the published code does;
            renormalised spreads them.
        mask_documents: whether attention and targets stop at the document boundaries inside a
            block. The LongReD authors did not mask.
        dtype: type in which the model computes; weights and gradients stay float32. CPUs without
            bfloat16 units are faster in float32.
        fp8: whether the linear layers of the decoder compute in 8-bit floats, on GPUs from compute
            capability 8.9. The training first checks that hidden states and losses agree.
        seed: number that determines the order of blocks and the skipped positions.
        keep_steps: steps after which the student is also saved as a model folder, in rising order
            and before the last step. evaluation.kept evaluates these students too.
        save_every_steps: number of steps between checkpoints; at most so many steps are repeated
            after a crash.
        save_every_seconds: a checkpoint is also saved after a step that ends so many seconds after
            the last one; for steps of minutes.
        num_checkpoints: number of newest checkpoints that stay on disk.
        num_threads: number of CPU threads; 0 leaves the choice to torch. It can change the last
            bits of a result.
        device: device of the training; auto takes a GPU if there is one.
        attention_backend: `auto` or a key of `longred.attention.backends.BACKENDS`.
        optimizer_offload: whether the optimizer's state stays in the memory of the host, which
            frees GPU memory and gives the same bits.
        activation_checkpointing: how much of each decoder layer is recomputed in the backward pass
            to save memory, with the same bits: nothing, all but attention (selective), or all
            (full).
        uncheckpointed_tokens: most tokens of a micro-batch that keeps all its activations, whatever
            activation_checkpointing says. Raise it while memory lasts; 0 for none.
        mlp_tile_tokens: tokens that an MLP computes at a time, which saves memory on very long
            rows; 0 for whole rows.
        fused: whether norms, RoPE and gated MLPs are computed as one function each, which is
            faster and changes the last bits.
        compile: whether torch.compile replaces fused and compiles everything that decoder layers
            do around attention. The first steps take longer.
        deterministic: whether only kernels that give the same bits every time are used. Attention's
            backward pass is slower; on a CPU all kernels are deterministic.
        spike_mads: height from which a loss is logged as train/loss_spike, in median absolute
            deviations above the median of the last 100 steps.
        halt_after_spikes: number of spikes in a row after which the training ends with an error;
            0 for never.
    """

    num_steps: Count = 512
    micro_batch_tokens: Count = 32768
    short_micro_batch_tokens: CountOrZero = 0
    trained: Trained = "all"
    learning_rate: Positive = 2e-5
    warmup_steps: CountOrZero = 0
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    decay_steps: CountOrZero = 0
    min_learning_rate: NonNegative = 0.0
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    betas: tuple[Share, Share] = (0.9, 0.95)
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.1
    decay_norms: bool = False
    max_grad_norm: Positive = 1.0
    short_distill_weight: NonNegative = 5.0
    short_to_long_weight: NonNegative = 10.0
    attention_distill_weight: NonNegative = 0.0
    long_distill_weight: NonNegative = 0.0
    relation_heads: Literal["own", "query"] = "own"
    logit_distill_weight: NonNegative | None = None
    logit_distill_temperature: Positive = 1.0
    weighting: Literal["token_share", "formula"] = "token_share"
    weights: Literal["fixed", "auto"] = "fixed"
    weights_every_steps: Count = 20
    truncation: Literal["clipped", "renormalised"] = "clipped"
    mask_documents: bool = True
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    fp8: bool = False
    seed: int = 0
    keep_steps: tuple[Count, ...] = ()
    save_every_steps: Undigested[Count] = 20
    save_every_seconds: Undigested[Positive] = 1800.0
    num_checkpoints: Undigested[Count] = 2
    num_threads: Undigested[CountOrZero] = 0
    device: Undigested[Device] = "auto"
    attention_backend: Undigested[str] = "auto"
    optimizer_offload: Undigested[bool] = False
    activation_checkpointing: Undigested[Literal["none", "selective", "full"]] = "none"
    uncheckpointed_tokens: Undigested[CountOrZero] = 8192
    mlp_tile_tokens: Undigested[CountOrZero] = 0
    fused: Undigested[bool] = True
    compile: Undigested[bool] = False
    deterministic: Undigested[bool] = False
    spike_mads: Undigested[Positive] = 10.0
    halt_after_spikes: Undigested[CountOrZero] = 3

    def settings_problem(self, *, trains_adapters: bool) -> str | None:
        """Return which settings contradict each other, by dotted key, or None.

        Args:
            trains_adapters: whether a method trains adapters with these settings.
        """
        if self.fp8 and self.dtype != "bfloat16":
            return f"training.fp8: needs training.dtype bfloat16, got {self.dtype}"
        if self.fp8 and trains_adapters:
            return (
                "training.fp8: does not work with adapters: their teacher is the student without "
                "them and would be rounded too; set it to false, or train another method"
            )
        if trains_adapters and self.trained != "all":
            return (
                f"training.trained: {self.trained} selects weights, but lora trains adapters "
                "instead of them; set it to all, and choose the adapted layers by "
                "training.lora.targets"
            )
        return self._schedule_problem() or self._keep_problem()

    def _schedule_problem(self) -> str | None:
        name, decay = self.schedule, self.decay_steps
        if (name == "wsd") != (decay > 0):
            return (
                "training.decay_steps: give the length of the decay with schedule wsd, and only "
                f"with it; got {decay} with {name}"
            )
        if name == "constant" and self.min_learning_rate > 0:
            return "training.min_learning_rate: schedule constant never falls; use cosine or wsd"
        if self.min_learning_rate > self.learning_rate:
            return (
                f"training.min_learning_rate: {self.min_learning_rate:g} is not between 0 and "
                f"training.learning_rate ({self.learning_rate:g})"
            )
        falling = {"constant": 0, "cosine": 1, "wsd": decay}[name]
        if falling and self.warmup_steps + falling > self.num_steps:
            return (
                f"training.warmup_steps: {self.warmup_steps} steps of warm-up and {falling} of "
                f"decay do not fit in training.num_steps ({self.num_steps})"
            )
        return None

    def _keep_problem(self) -> str | None:
        steps = list(self.keep_steps)
        wrong = [step for step in steps if not 1 <= step < self.num_steps]
        if wrong:
            last = self.num_steps
            return (
                f"training.keep_steps: {shown(wrong)} do not lie before the last step; give steps "
                f"from 1 to {last - 1}, since the student of step {last} is the result"
            )
        if steps != sorted(set(steps)):
            return f"training.keep_steps: {shown(steps)} must rise, each step once"
        return None


@dataclass(frozen=True, kw_only=True)
class TrainingJob(TrainingSettings):
    """One student to train by one method.

    Attributes:
        method: a name of `longred.method.methods.METHODS`.
        data_folder: folder of the data stage (blocks of the buckets).
        student_folder: folder of the extension stage, or any Hugging Face folder.
        teacher_folder: the original model; read only by methods that distil.
        data_digest: identity of the data; a checkpoint of other data is refused.
        distill_layers: `hidden_states` indices 1…N whose states are distilled on short blocks.
        rows: blocks of each bucket in one optimizer step; exactly the buckets of the method.
        ratio: token ratio of the buckets, which determines the weights of the losses.
        original_window: block length of the original bucket, tokens.
        target_window: block length of the long bucket, tokens.
        lora: `rank`, `alpha`, `targets` of the adapters, and `objectives`, the method whose terms
            they are trained on; empty for methods that train the weights.
        sigma: spread of the skipped positions of kind `cream`.
        parallel: the values of a `longred.method.layout.Layout`. They change the last bits.

    Raises:
        ConfigError: a value cannot work; the message names it as `training.<name>`.
    """

    method: str
    data_folder: Undigested[str]
    student_folder: Undigested[str]
    teacher_folder: Undigested[str]
    data_digest: str
    distill_layers: tuple[int, ...] = ()
    rows: Mapping[str, int]
    ratio: Mapping[str, int] = field(default_factory=lambda: {"long": 4, "short": 3, "original": 1})
    original_window: Count
    target_window: int
    lora: Mapping[str, Any] = field(default_factory=dict)
    sigma: float = 5.0
    parallel: Undigested[Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Normalise containers and refuse values that cannot work."""
        # JSON gives lists; equal jobs must compare equal wherever they come from.
        for name in ("distill_layers", "keep_steps", "betas"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("rows", "ratio", "lora", "parallel"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        problem = self._problem()
        if problem:
            raise ConfigError(problem)
        if self.logit_distill_weight is None:
            own = self.recipe.logit_distill_weight
            object.__setattr__(self, "logit_distill_weight", own)

    def _problem(self) -> str | None:
        if self.method not in METHODS:
            return f"training.method: {self.method!r} is not one of {', '.join(METHODS)}"
        if METHODS[self.method].trains_adapters and self.lora.get("objectives") not in METHODS:
            return f"training.lora: {self.method} needs adapters, got {self.lora}"
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            if problem := value_problem(kind, getattr(self, name)):
                return f"training.{name}: {problem}"
        if unknown := self.parallel.keys() - {item.name for item in dataclasses.fields(Layout)}:
            return f"training.parallel.{min(unknown)}: unknown value"
        problem = self.settings_problem(trains_adapters=self.recipe.trains_adapters)
        problem = problem or self.layout.problem()
        carried, shared = self.lora.get("objectives", ""), self.layout.sequence_parallel
        problem = problem or method_problem(self.method, carried=carried, sequence_parallel=shared)
        if problem:
            return problem
        buckets = self.recipe.buckets()
        if set(self.rows) != set(buckets) or min(self.rows.values()) < 1:
            needed = ", ".join(buckets)
            return f"training.rows: {self.method} needs rows of {needed}, got {self.rows}"
        if not set(buckets) <= set(self.ratio):
            return f"training.ratio: must name {', '.join(buckets)}, got {self.ratio}"
        if self.recipe.uses_layers() and not self.distill_layers:
            return f"training.distill_layers: {self.method} needs at least one layer"
        return None

    @property
    def layout(self) -> Layout:
        """How the training is divided over processes."""
        return Layout(**self.parallel)

    @property
    def recipe(self) -> Method:
        """What the method does with each bucket."""
        return method_terms(self.method, self.lora.get("objectives", "")).reading(self.ratio)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms of the loss, without optional ones of weight 0."""
        return tuple(
            term
            for term in self.recipe.terms
            if not (term.is_optional and term.weight and getattr(self, term.weight) == 0)
        )

    @property
    def changes(self) -> Literal["all", "attention", "adapters"]:
        """What the training changes: all weights, those of attention, or adapters."""
        if self.recipe.trains_adapters:
            return "adapters"
        return self.trained if self.recipe.trained == "all" else self.recipe.trained

    def seen_rows(self, bucket: str, block_length: int) -> tuple[int, int]:
        """Return the rows of a bucket that the models read in a step, and the tokens of each.

        They are the blocks, except where the method cuts: a block then gives as many rows of the
        original window as fit, each with its own draw, so that a step trains about as many tokens
        as it reads. (The number of rows per text is ours; PoSE cuts one.)
        """
        rows = self.rows[bucket]
        if not self.recipe.cuts(bucket):
            return rows, block_length
        return rows * (block_length // self.original_window), self.original_window

    def uses_teacher(self) -> bool:
        """Return whether a term of the loss runs the teacher."""
        return any(term.objective != "cross_entropy" for term in self.terms)

    def compares_logits(self) -> bool:
        """Return whether a term of the loss needs the teacher's logits."""
        return any(term.objective == "logit_distill" for term in self.terms)

    @classmethod
    def fields(cls) -> frozenset[str]:
        """Return the names of all values."""
        return frozenset(item.name for item in dataclasses.fields(cls))

    def identity(self) -> dict[str, Any]:
        """Return the values that can change the result; a checkpoint belongs to exactly these.

        Folders stay out, so that a store can be moved; `data_digest` stands for the data.
        """
        kinds = get_type_hints(type(self), include_extras=True)
        return {
            name: value
            for name, value in self.to_json().items()
            if UNDIGESTED not in getattr(kinds[name], "__metadata__", ())
        }

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in sorted(vars(self).items())
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainingJob":
        """Return the job that `to_json` wrote.

        Raises:
            ConfigError: a value is unknown, missing or cannot work.
        """
        if unknown := sorted(set(values) - cls.fields()):
            raise ConfigError(
                f"training.{unknown[0]}: unknown value; known: {', '.join(sorted(cls.fields()))}"
            )
        for item in sorted(dataclasses.fields(cls), key=lambda item: item.name):
            if item.default is item.default_factory is MISSING and item.name not in values:
                raise ConfigError(f"training.{item.name}: is required")
        return cls(**values)
