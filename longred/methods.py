"""The methods a user compares: which objective each bucket feeds, and how positions are skipped."""

from dataclasses import dataclass

BUCKETS = ("long", "short", "original")


@dataclass(frozen=True, slots=True)
class Method:
    """What a method does with each bucket; None leaves the bucket out.

    Attributes:
        long: objective on long blocks.
        short: objective on short blocks: hidden-state distillation or cross-entropy.
        original: objective on original-window blocks: short-to-long distillation or cross-entropy.
        positions: how the student's positions are skipped on original-window blocks.
    """

    long: str | None = "cross_entropy"
    short: str | None = None
    original: str | None = None
    positions: str | None = None

    def buckets(self) -> tuple[str, ...]:
        """Return the buckets that the method reads, in order."""
        return tuple(name for name in BUCKETS if getattr(self, name) is not None)

    def unused_settings(self) -> frozenset[str]:
        """Return the training settings that the method never reads."""
        unused: set[str] = set()
        if not self.uses_teacher():
            unused |= {"short_distill_weight", "short_to_long_weight", "weighting"}
        if self.positions is None:
            unused |= {"sigma", "truncation"}
        if self.buckets() == ("long",):
            unused |= {"short_length", "ratio"}
        return frozenset(unused)

    def uses_layers(self) -> bool:
        """Return whether the method distils selected layers."""
        return self.short == "distill"

    def uses_teacher(self) -> bool:
        """Return whether the method runs the teacher."""
        return "distill" in (self.short, self.original)


METHODS = {
    "longred-c": Method(short="distill", original="distill", positions="cream"),
    "longred-u": Method(short="distill", original="distill", positions="uniform"),
    "cpt": Method(),
    "mix-cpt": Method(short="cross_entropy", original="cross_entropy"),
}
"""Source of the LongReD rows and baselines: arXiv 2502.07365, section 5."""
