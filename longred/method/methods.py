"""The methods a user compares: which objective reads which bucket, and what is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

BUCKETS = ("long", "short", "original")
MethodName = Literal[
    "longred-c",
    "longred-u",
    "cpt",
    "mix-cpt",
    "attention-only",
    "cream",
    "pose",
    "pose-anywhere",
    "merge",
    "lora",
    "attention-distill",
    "logit-distill",
    "recalibrate",
    "recalibrate-distill",
]


@dataclass(frozen=True, slots=True)
class Term:
    """One objective on the rows of one bucket.

    Attributes:
        bucket: the bucket that it reads.
        objective: a key of `longred.objectives.table.OBJECTIVES`.
        weight: the training setting that holds its weight; None for a weight of 1. The terms of
            cross-entropy weigh 1 together, shared by tokens.
        is_optional: whether a weight of 0 leaves the term out entirely.
    """

    bucket: str
    objective: str
    weight: str | None = None
    is_optional: bool = False

    @property
    def metric(self) -> str:
        """The key of its loss in the journal."""
        if self.objective == "cross_entropy":
            return f"train/{self.bucket}_loss"
        if self.objective == "logit_distill":
            return f"train/{self.bucket}_logit_loss"
        name = "short_distill" if self.objective == "hidden_distill" else self.objective
        return f"train/{name}_loss"

    @property
    def weight_metric(self) -> str:
        """The key of its weight in the journal, when weights follow the gradients."""
        return self.metric.removesuffix("_loss") + "_weight"


LONG = Term("long", "cross_entropy")
SHORT_DISTILL = Term("short", "hidden_distill", "short_distill_weight")
ORIGINAL = Term("original", "cross_entropy")
SHORT_TO_LONG = Term("original", "short_to_long", "short_to_long_weight")
ATTENTION_DISTILL = Term("short", "attention_distill", "attention_distill_weight", True)
LONG_DISTILL = Term("long", "long_distill", "long_distill_weight", True)
LOGITS = tuple(Term(bucket, "logit_distill", "logit_distill_weight") for bucket in BUCKETS[1:])
SHORT_LOGITS, ORIGINAL_LOGITS = (replace(term, is_optional=True) for term in LOGITS)
LONGRED = (
    *(LONG, LONG_DISTILL),
    *(SHORT_DISTILL, ATTENTION_DISTILL, SHORT_LOGITS),
    *(SHORT_TO_LONG, ORIGINAL_LOGITS),
)

_WEIGHT_SETTINGS = {term.weight for term in LONGRED if term.weight}
_WEIGHTING_SETTINGS = {"weights", "weights_every_steps", "weighting"}

Trained = Literal["all", "attention"]
"""Weights of the student that a training changes: all, or the linear layers of self-attention."""


@dataclass(frozen=True, slots=True)
class Method:
    """The terms of a method's loss, and which weights of the student it trains.

    Attributes:
        terms: the loss, by bucket in the order of `BUCKETS`.
        positions: how the student's positions skip on rows of the original window; a key of
            `longred.method.positions.SKIPPERS`, or None for 0 to T - 1.
        sigma: default spread of the skipped positions.
        logit_distill_weight: default of this setting.
        trained: `attention` trains these weights whatever `training.trained` says.
        trains_adapters: train low-rank adapters instead of the weights.
        merges: the method whose student is averaged with the original; nothing else is trained.
        version: raised when the method of this name does something else, for digests.
        is_partial: whether `reading` left terms out, so that a training needs the ratio to know it.
    """

    terms: tuple[Term, ...] = (LONG,)
    positions: str | None = None
    sigma: float = 5.0
    logit_distill_weight: float = 0.0
    trained: Trained = "all"
    trains_adapters: bool = False
    merges: str | None = None
    version: int = 1
    is_partial: bool = False

    @property
    def skipped_bucket(self) -> str | None:
        """The bucket on whose rows positions skip; None if they do on none."""
        if self.positions is None:
            return None
        return "long" if self.positions == "pose" else "original"

    def cuts(self, bucket: str) -> bool:
        """Return whether rows of the original window are cut out of a bucket's blocks."""
        return bucket == self.skipped_bucket == "long"

    def buckets(self) -> tuple[str, ...]:
        """Return the buckets that the method reads, in order."""
        return tuple(b for b in BUCKETS if any(term.bucket == b for term in self.terms))

    def reading(self, ratio: Mapping[str, int]) -> "Method":
        """Return the method without the terms on buckets whose part of a step is 0."""
        terms = tuple(term for term in self.terms if ratio.get(term.bucket, 1))
        return self if terms == self.terms else replace(self, terms=terms, is_partial=True)

    def unused_settings(self) -> frozenset[str]:
        """Return the training settings that the method never reads."""
        weights = {term.weight for term in self.terms if term.weight}
        unused = _WEIGHT_SETTINGS - weights
        if not weights:
            unused |= _WEIGHTING_SETTINGS
        if all(term.objective != "attention_distill" for term in self.terms):
            unused |= {"relation_heads"}
        if "logit_distill_weight" in unused:
            unused |= {"logit_distill_temperature"}
        if self.positions != "cream":
            unused |= {"sigma", "truncation"}
        if len(self.buckets()) == 1:
            unused |= {"short_length"} if self.is_partial else {"short_length", "ratio"}
        if not self.trains_adapters:
            unused |= {"lora"}
        if self.trains_adapters or self.trained != "all":
            unused |= {"trained"}
        if self.trains_adapters:
            unused |= {"decay_norms"}
        return frozenset(unused | {"merge_weight"})

    def uses_layers(self) -> bool:
        """Return whether the method distils selected layers."""
        return any(term.objective == "hidden_distill" for term in self.terms)


METHODS: dict[str, Method] = {
    "longred-c": Method(LONGRED, positions="cream"),
    "longred-u": Method(LONGRED, positions="uniform"),
    "cpt": Method(),
    "mix-cpt": Method(tuple(Term(bucket, "cross_entropy") for bucket in BUCKETS)),
    "attention-only": Method(trained="attention"),
    "cream": Method((ORIGINAL,), positions="cream", sigma=3.0),
    "pose": Method(positions="pose", version=2),
    "pose-anywhere": Method((ORIGINAL,), positions="pose-anywhere"),
    "merge": Method(merges="cpt"),
    "lora": Method(LONGRED, positions="cream", trains_adapters=True),
    "attention-distill": Method((Term("original", "attention_distill"),)),
    "logit-distill": Method((LONG, *LOGITS), positions="cream", logit_distill_weight=1.0),
    "recalibrate": Method((ORIGINAL,)),
    "recalibrate-distill": Method((SHORT_DISTILL, ORIGINAL, SHORT_TO_LONG)),
}
"""cream reads only original-window text, at skipped positions; attention-distill reads the same
text at positions 0 to T - 1, the range of its teacher. pose reads two runs of a long text, at the
positions where they stand (the published code draws the second run's text on its own).

Sources: LongReD and its baselines arXiv 2502.07365, section 5; cream 2406.07138; pose
2309.10400; lora 2106.09685; attention-distill 2604.00004; recalibrate, which reads original-window
text at positions 0 to T - 1 once RoPE is off, is DroPE's (2512.12167).

Ours: pose-anywhere splits original-window text at any token; logit-distill is longred-c with the KL
of next-token distributions in place of the distances of hidden states; recalibrate-distill adds
LongReD's two distances at positions 0 to T - 1, with LongReD's weights."""


def method_problem(name: str, *, carried: str, sequence_parallel: int) -> str | None:
    """Return why a method cannot be trained with these settings, or None.

    Args:
        name: the method.
        carried: the method that adapters take terms and positions from.
        sequence_parallel: number of processes that share a long row.
    """
    method, other = METHODS[name], METHODS.get(carried, Method())
    if method.trains_adapters and (other.trains_adapters or other.merges):
        return (
            f"training.lora.objectives: {carried} has no terms that adapters could be trained on, "
            "and adapters on a merged model would have that model as their teacher; name a method "
            "that trains, such as longred-c"
        )
    if method.trains_adapters and other.trained != "all":
        return (
            f"training.lora.objectives: {carried} trains weights of attention, not adapters; name "
            "another method, and restrict adapters by training.lora.targets"
        )
    if sequence_parallel > 1 and method_terms(name, carried).cuts("long"):
        return (
            f"training.parallel.sequence_parallel: {sequence_parallel} processes would share long "
            "rows, and method pose cuts short ones out of them; use 1"
        )
    return None


def method_terms(name: str, carried: str) -> Method:
    """Return a method; adapters take terms and positions from the method `carried`."""
    method = METHODS[name]
    return replace(METHODS[carried], trains_adapters=True) if method.trains_adapters else method
