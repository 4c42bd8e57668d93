"""The part of the pipeline that a run builds."""

from dataclasses import dataclass, replace
from enum import Enum

from longred.errors import ConfigError

STAGES = (
    "model",
    "data",
    "extension",
    "profiling",
    "selection",
    "training",
    "evaluation",
    "report",
)
"""In order: each stage depends only on earlier ones."""

WHAT_CHANGED = "what changed"
"""Choice in place of a stage: start from the stages whose settings or inputs changed."""


class Mode(Enum):
    """What a run does with the artifacts of a stage."""

    MAKE = "build if missing"
    REMAKE = "always build"
    REQUIRE = "must exist"
    TELL = "report the identity, build nothing"


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of the pipeline that a run builds.

    Attributes:
        only: build this stage alone; earlier ones must exist, later ones stay as they are.
        start: rebuild this stage and all later ones, even if they exist.
        is_dry: build nothing.

    Raises:
        ConfigError: a stage is unknown, or both `only` and `start` are given.
    """

    only: str | None = None
    start: str | None = None
    is_dry: bool = False

    def __post_init__(self) -> None:
        """Validate the stages."""
        for option, stage in (("--only", self.only), ("--from", self.start)):
            if stage is not None and stage not in STAGES[1:]:
                raise ConfigError(f"{option}: {stage} is not one of {', '.join(STAGES[1:])}")
        if self.only and self.start:
            raise ConfigError("--only and --from exclude each other: give one of them")

    def mode(self, stage: str) -> Mode:
        """Return what a run of this scope does with the artifacts of a stage."""
        return Mode.TELL if self.is_dry else self.planned_mode(stage)

    def planned_mode(self, stage: str) -> Mode:
        """Return the mode of a stage; for a dry run, that of the run it stands for."""
        position = STAGES.index(stage)
        if self.start is not None:
            return Mode.REMAKE if position >= STAGES.index(self.start) else Mode.MAKE
        if self.only is not None and stage != self.only:
            return Mode.REQUIRE if position < STAGES.index(self.only) else Mode.TELL
        return Mode.MAKE

    @property
    def part(self) -> str | None:
        """The part of the pipeline in words; None for everything that changed."""
        return (self.only and f"only {self.only}") or (self.start and f"again from {self.start}")

    def starting(self, stage: str | None) -> "Scope":
        """Return this scope with another `start`, unless `stage` is None or WHAT_CHANGED."""
        return self if stage in (None, WHAT_CHANGED) else replace(self, start=stage)

    def fate(self, stage: str, reason: str | None) -> str:
        """Return in one word what happens to an artifact: skipped, missing, stale or runs.

        Args:
            stage: name of the stage.
            reason: why the artifact has to be built; None if it exists.
        """
        if reason is None:
            return "skipped"
        return {Mode.REQUIRE: "missing", Mode.TELL: "stale"}.get(self.planned_mode(stage), "runs")
