"""Which stages a run makes, which it only tells of, and why each is made at all."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from longred.errors import ConfigError
from longred.store.artifacts import MANIFEST, Artifact, Store
from longred.store.remote import Remote

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
"""In the order in which each builds on those before it."""

MAX_DIFFERENCES = 4
WHAT_CHANGED = "what changed"
"""In place of a stage: the run starts where settings or inputs are others than before."""


class Mode(Enum):
    """What happens when a stage asks the store for its artifact."""

    MAKE = "made where it does not exist"
    REMAKE = "made even where it exists"
    REQUIRE = "must exist"
    TELL = "its identity is told, nothing is made"


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of the pipeline that a run makes.

    Attributes:
        only: make this stage alone: earlier ones must be there, later ones are left as they are.
        start: make this stage and all later ones again, even where they exist.
        is_dry: make nothing at all.

    Raises:
        ConfigError: a stage is unknown, or `only` and `start` are both given.
    """

    only: str | None = None
    start: str | None = None
    is_dry: bool = False

    def __post_init__(self) -> None:
        """Refuse what names no stage."""
        for option, stage in (("--only", self.only), ("--from", self.start)):
            if stage is not None and stage not in STAGES[1:]:
                raise ConfigError(f"{option}: {stage} is not one of {', '.join(STAGES[1:])}")
        if self.only and self.start:
            raise ConfigError("--only and --from exclude each other: give one of them")

    def mode(self, stage: str) -> Mode:
        """Return what happens to a stage's artifacts."""
        if self.is_dry:
            return Mode.TELL
        place = STAGES.index(stage)
        if self.start is not None:
            return Mode.REMAKE if place >= STAGES.index(self.start) else Mode.MAKE
        if self.only is not None and stage != self.only:
            return Mode.REQUIRE if place < STAGES.index(self.only) else Mode.TELL
        return Mode.MAKE

    @property
    def part(self) -> str | None:
        """The part of the pipeline that is made, in words; None for what changed of all of it."""
        return (self.only and f"only {self.only}") or (self.start and f"again from {self.start}")

    def starting(self, stage: str | None) -> "Scope":
        """Return this scope, made from a stage on, where one is given."""
        return self if stage in (None, WHAT_CHANGED) else replace(self, start=stage)

    def fate(self, stage: str, reason: str | None) -> str:
        """Return in a word what a run of this scope does with a stage's artifact.

        Args:
            stage: the stage.
            reason: why it would have to be made; None where it exists.
        """
        if reason is None:
            return "skipped"
        mode = replace(self, is_dry=False).mode(stage)
        return {Mode.REQUIRE: "missing", Mode.TELL: "stale"}.get(mode, "runs")

    def is_forced(self, stage: str) -> bool:
        """Return whether a stage's artifacts are made even where they exist."""
        return replace(self, is_dry=False).mode(stage) is Mode.REMAKE


@dataclass(frozen=True, slots=True)
class Begun:
    """What a stage asked the store for.

    Attributes:
        stage: the stage.
        digest: identity of its artifact.
        work: folder of resumable progress.
        reason: why it has to be made; None where it exists.
    """

    stage: str
    digest: str
    work: Path
    reason: str | None


class ScopedStore(Store):
    """A store that makes a part of the pipeline and tells of everything it is asked for.

    Args:
        root: as `Store`.
        scope: what is made.
        begun: told of each artifact before it is made.
        previous: returns the digest that the running stage had in an earlier run, if any.
        remote: as `Store`.

    Attributes:
        told: digests of artifacts that do not exist here and were not made.
    """

    def __init__(
        self,
        root: Path | str,
        scope: Scope,
        begun: Callable[[Begun], None],
        previous: Callable[[], str | None],
        remote: Remote | None = None,
    ) -> None:
        super().__init__(root, remote)
        self.scope = scope
        self.writes = not scope.is_dry
        self.told: set[str] = set()
        self._begun = begun
        self._previous = previous

    def build(
        self,
        stage: str,
        values: Mapping[str, Any],
        inputs: Mapping[str, str],
        make: Callable[[Path, Path], None],
        version: int = 1,
        *,
        again: bool = False,
    ) -> Artifact:
        """Return the artifact as `Store.build` does, or only its identity, as the scope says.

        Raises:
            ConfigError: the artifact must exist and does not.
        """
        digest = self.digest(stage, values, inputs, version)
        found = self.find(stage, digest)
        again = again or self.scope.is_forced(stage)
        reason = None
        if found is None and not self.is_remote(stage, digest):
            identity = {"values": dict(values), "inputs": dict(inputs), "version": version}
            reason = why(self, stage, digest, identity, self._previous())
        elif again:
            reason = f"asked for (--from {self.scope.start})"
        self._begun(Begun(stage, digest, self.work(digest), reason))
        mode = self.scope.mode(stage)
        if mode is Mode.REQUIRE and reason is not None:
            raise ConfigError(
                f"--only {self.scope.only}: {stage} is not made yet ({reason}); run it first, or "
                "leave out --only"
            )
        if mode is Mode.TELL and (reason is not None or found is None):
            self.told.add(digest)
            return Artifact(stage, digest, str(self._folder(stage, digest)))
        return super().build(stage, values, inputs, make, version, again=again)


def why(
    store: Store, stage: str, digest: str, identity: Mapping[str, Any], previous: str | None
) -> str:
    """Return in words why an artifact that does not exist has to be made.

    Args:
        store: where it is not.
        stage: its stage.
        digest: its identity.
        identity: the values, inputs and version that the digest stands for.
        previous: digest of what the same stage had in an earlier run.
    """
    if (store.work(digest) / "lock").exists():
        return "was begun and not finished"
    if previous is None:
        return "not made before"
    if previous == digest:
        return "its folder is missing or not whole"
    manifest = store.artifacts / f"{stage}-{previous}" / MANIFEST
    try:
        before = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "not made before"
    found = _differences(before.get("values", {}), identity["values"], stage)
    inputs, inputs_before = identity["inputs"], before.get("inputs", {})
    changed = [name for name in sorted(inputs) if inputs[name] != inputs_before.get(name)]
    found += [f"{name} changed" for name in changed]
    if before.get("version") != identity["version"]:
        found.append("this version of longred makes it differently")
    if not found:
        return "its inputs are others than before"
    rest = len(found) - MAX_DIFFERENCES
    return "; ".join(found[:MAX_DIFFERENCES]) + (f"; and {rest} more" if rest > 0 else "")


def _differences(before: Any, after: Any, key: str) -> list[str]:
    """Return `key: old -> new` for every value that two nested settings do not share."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return [
            text
            for name in sorted(before.keys() | after.keys())
            for text in _differences(before.get(name), after.get(name), f"{key}.{name}")
        ]
    if before == after:
        return []
    return [f"{key}: {_short(before)} -> {_short(after)}"]


def _short(value: Any, limit: int = 40) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
