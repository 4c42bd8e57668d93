"""How students are trained."""

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from longred.config.section import (
    Count,
    Device,
    NonNegative,
    Positive,
    Section,
    Share,
    runtime,
)
from longred.method.layout import Layout
from longred.method.methods import Method, method_terms

MethodName = Literal[
    "longred-c",
    "longred-u",
    "cpt",
    "mix-cpt",
    "cream",
    "pose",
    "merge",
    "lora",
    "attention-distill",
]


class LoraConfig(Section):
    """The adapters of method lora, and the method whose terms and positions they are trained on.

    `targets` are linear layers of the decoder by the last part of their name; the adapters' product
    is scaled by alpha / rank.
    """

    rank: Count = 16
    alpha: Positive = 32.0
    targets: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
    )
    objectives: MethodName = "longred-c"


class ParallelConfig(Section):
    """How a training is divided over processes, one on each GPU; it changes the last bits alone.

    `replicas` whole copies of the weights are held, each sharded over its processes (FSDP2): one
    needs the least memory, as many as processes is plain data parallelism, what lies between is
    HSDP, with a replica on each machine. `sequence_parallel` neighbouring processes share the
    tokens of one long row; it divides the model's key-value heads. Other rows are never shared.
    """

    num_processes: Count = 1
    replicas: Count = 1
    sequence_parallel: Count = 1

    def layout(self) -> Layout:
        """Return the same as the trainer's value."""
        return Layout(**self.model_dump())


class TrainingConfig(Section):
    """How students are trained: the method, its baselines, and what they share.

    `step_tokens` is divided over the buckets by `data.ratio`; methods that use only one bucket
    spend all of it there. After `warmup_steps` of linear warm-up `learning_rate` stays (constant),
    falls over all the rest (cosine), or over the last `decay_steps` (wsd), to `min_learning_rate`.
    adamw8bit keeps the moments in 8 bits, a quarter of the memory; `optimizer_offload` keeps them
    in host memory, at the cost of one crossing a step and without changing a bit. `sigma` is the
    method's own where it is null: 5 in LongReD, 3 in CREAM. `attention_distill_weight` and
    `long_distill_weight` add terms to LongReD's three: the relations of every layer on short
    blocks, and the last hidden state on the first original window of every long document.
    `merge_weight` is the student's share in method merge.

    After each of `keep_steps` the student is kept as a model folder in the training's artifact,
    `kept/step-000010`, beside the result; `evaluation.kept` asks them too.

    `weights: auto` lets every distilled term pull on the weights as hard as the text does: the
    norms of the terms' gradients are measured every `weights_every_steps`, at the cost of one more
    step, and the terms weigh their smoothed ratios; a term set to 0 stays out.

    `activation_checkpointing` computes decoder layers again in the backward pass, but for their
    attention outputs (selective) or whole (full), in micro-batches of more than
    `uncheckpointed_tokens`; `short_micro_batch_tokens` cuts short and original rows into smaller
    ones than `micro_batch_tokens`, so that they need none. `mlp_tile_tokens` computes MLPs so many
    tokens at a time, which very long rows need. `fused` computes norms, RoPE and gated MLPs as one
    function each, compiled on a GPU, which hold less; `compile` compiles all that decoder layers do
    around attention instead. None of these changes a result beyond rounding.

    On a GPU the fastest kernels add in an order of their own each time, so that a repeated or
    resumed training differs in its last bits. `deterministic` uses only kernels that give the same
    bits every time; attention's backward pass is slower for it. On a CPU all are.

    `fp8` takes the products of the decoder's linear layers in 8-bit floats, on GPUs from compute
    capability 8.9; the training starts only if hidden states and losses stay where they were.

    A loss more than `spike_mads` median absolute deviations above the last 100 is told of, as
    metric `train/loss_spike`; `halt_after_spikes` in a row end the training, 0 for never.
    """

    method: MethodName = "longred-c"
    baselines: list[MethodName] = []
    num_steps: Count = 512
    step_tokens: Count = 2097152
    micro_batch_tokens: Count = 32768
    short_micro_batch_tokens: Annotated[int, Field(ge=0)] = 0
    learning_rate: Positive = 2e-5
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    decay_steps: Annotated[int, Field(ge=0)] = 0
    min_learning_rate: NonNegative = 0.0
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    betas: tuple[Share, Share] = (0.9, 0.95)
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.1
    max_grad_norm: Positive = 1.0
    short_distill_weight: NonNegative = 5.0
    short_to_long_weight: NonNegative = 10.0
    attention_distill_weight: NonNegative = 0.0
    long_distill_weight: NonNegative = 0.0
    weighting: Literal["token_share", "formula"] = "token_share"
    weights: Literal["fixed", "auto"] = "fixed"
    weights_every_steps: Count = 20
    lora: LoraConfig = LoraConfig()
    merge_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    sigma: Positive | None = None
    truncation: Literal["clipped", "renormalised"] = "clipped"
    mask_documents: bool = True
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    fp8: bool = False
    original_window: int = 0
    target_window: int = 0
    short_length: int = 0
    ratio: dict[str, int] = {}
    seed: int = 0
    keep_steps: list[Count] = []
    save_every_steps: Count = runtime(20, ge=1)
    num_checkpoints: Count = runtime(2, ge=1)
    num_threads: Annotated[int, Field(ge=0)] = runtime(0, ge=0)
    device: Device = runtime("auto")
    attention_backend: str = runtime("auto")
    parallel: ParallelConfig = runtime(ParallelConfig())
    optimizer_offload: bool = runtime(False)
    activation_checkpointing: Literal["none", "selective", "full"] = runtime("none")
    uncheckpointed_tokens: Annotated[int, Field(ge=0)] = runtime(8192)
    mlp_tile_tokens: Annotated[int, Field(ge=0)] = runtime(0)
    fused: bool = runtime(True)
    compile: bool = runtime(False)
    deterministic: bool = runtime(False)
    spike_mads: Positive = runtime(10.0)
    halt_after_spikes: Annotated[int, Field(ge=0)] = runtime(3)

    def methods(self) -> list[str]:
        """Return the method and its baselines, each once, in the order of training."""
        return list(dict.fromkeys([self.method, *self.baselines]))

    def recipe(self, method: str) -> Method:
        """Return what a method does under these settings."""
        return method_terms(method, self.lora.objectives)

    def block_lengths(self) -> dict[str, int]:
        """Return the block length of each bucket, in tokens."""
        return {
            "long": self.target_window,
            "short": self.short_length,
            "original": self.original_window,
        }

    def bucket_tokens(self, method: str) -> dict[str, Fraction]:
        """Return the exact share of `step_tokens` that a method reads from each bucket."""
        share = {bucket: self.ratio[bucket] for bucket in self.recipe(method).buckets()}
        return {b: Fraction(self.step_tokens * share[b], sum(share.values())) for b in share}

    def rows(self, method: str) -> dict[str, int]:
        """Return how many blocks of each bucket one optimizer step of a method reads."""
        lengths = self.block_lengths()
        return {
            bucket: int(tokens) // lengths[bucket]
            for bucket, tokens in self.bucket_tokens(method).items()
        }
