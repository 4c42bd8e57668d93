"""The methods a user compares: what each bucket feeds, and what of the student is trained."""

from dataclasses import dataclass, replace

BUCKETS = ("long", "short", "original")


@dataclass(frozen=True, slots=True)
class Term:
    """One objective on the rows of one bucket.

    Attributes:
        bucket: the bucket that feeds it.
        objective: a key of `longred.objectives.table.OBJECTIVES`.
        weight: the training setting that holds its weight; None where it weighs 1. The terms of
            cross-entropy weigh 1 together, shared by tokens.
        is_optional: whether it is left out altogether where its weight is 0.
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
        return f"train/{_METRICS.get(self.objective, self.objective)}_loss"

    @property
    def weight_metric(self) -> str:
        """The key of its weight in the journal, where weights follow the gradients."""
        return self.metric.removesuffix("_loss") + "_weight"


_METRICS = {"hidden_distill": "short_distill"}
"""Metric names that are not the objective's own."""

LONG = Term("long", "cross_entropy")
SHORT_DISTILL = Term("short", "hidden_distill", "short_distill_weight")
SHORT_TO_LONG = Term("original", "short_to_long", "short_to_long_weight")
ATTENTION_DISTILL = Term("short", "attention_distill", "attention_distill_weight", True)
LONG_DISTILL = Term("long", "long_distill", "long_distill_weight", True)
LONGRED = (LONG, LONG_DISTILL, SHORT_DISTILL, ATTENTION_DISTILL, SHORT_TO_LONG)


@dataclass(frozen=True, slots=True)
class Method:
    """What a method trains on, and what of the student it trains.

    Attributes:
        terms: objectives of the loss, by bucket in the order of `BUCKETS`.
        positions: how the student's positions are skipped on original-window blocks; a key of
            `longred.method.positions.SKIPPERS`, or None for 0 to T - 1.
        sigma: spread of the skipped positions where the recipe names none.
        trains_adapters: whether low-rank adapters are trained, and not the weights.
        merges: the method whose student is averaged with the original, where that is all.
    """

    terms: tuple[Term, ...] = (LONG,)
    positions: str | None = None
    sigma: float = 5.0
    trains_adapters: bool = False
    merges: str | None = None

    def buckets(self) -> tuple[str, ...]:
        """Return the buckets that the method reads, in order."""
        return tuple(b for b in BUCKETS if any(term.bucket == b for term in self.terms))

    def unused_settings(self) -> frozenset[str]:
        """Return the training settings that the method never reads."""
        unused = {term.weight for term in LONGRED if term.weight}
        unused |= {"weights", "weights_every_steps", "weighting"}
        unused |= {"sigma", "truncation", "short_length", "ratio"}
        unused |= {"lora", "merge_weight"}
        weights = {term.weight for term in self.terms if term.weight}
        unused -= weights
        if weights:
            unused -= {"weights", "weights_every_steps", "weighting"}
        if self.positions == "cream":
            unused -= {"sigma", "truncation"}
        if len(self.buckets()) > 1:
            unused -= {"short_length", "ratio"}
        if self.trains_adapters:
            unused.discard("lora")
        return frozenset(unused)

    def uses_layers(self) -> bool:
        """Return whether the method distils selected layers."""
        return any(term.objective == "hidden_distill" for term in self.terms)

    def uses_teacher(self) -> bool:
        """Return whether the method can run the teacher."""
        return any(term.objective != "cross_entropy" for term in self.terms)


METHODS = {
    "longred-c": Method(LONGRED, positions="cream"),
    "longred-u": Method(LONGRED, positions="uniform"),
    "cpt": Method(),
    "mix-cpt": Method(tuple(Term(bucket, "cross_entropy") for bucket in BUCKETS)),
    "cream": Method((Term("original", "cross_entropy"),), positions="cream", sigma=3.0),
    "pose": Method((Term("original", "cross_entropy"),), positions="pose"),
    "merge": Method(merges="cpt"),
    "lora": Method(LONGRED, positions="cream", trains_adapters=True),
    "attention-distill": Method((Term("original", "attention_distill"),)),
}
"""cream and pose read original-window text only, at skipped positions; attention-distill reads the
same text at positions 0 to T - 1, where its teacher is at home.

Sources: LongReD and its baselines arXiv 2502.07365, section 5; cream 2406.07138; pose
2309.10400; lora 2106.09685; attention-distill 2604.00004."""


def method_terms(name: str, carried: str) -> Method:
    """Return a method; adapters carry the terms and positions of the method `carried`."""
    method = METHODS[name]
    return replace(METHODS[carried], trains_adapters=True) if method.trains_adapters else method
