"""The store of an open run: builds what the run's scope allows, and says why."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from longred.errors import ConfigError
from longred.runs.record import RunRecord, newest_runs
from longred.runs.scope import Mode, Scope
from longred.store.artifacts import MANIFEST, Artifact, Store, artifact_identity
from longred.store.remote import Remote

MAX_DIFFERENCES = 4
MAX_VALUE_CHARACTERS = 40


class RunStore(Store):
    """The store of an open run: builds what the scope allows and records what stages request.

    Args:
        root: as in `Store`.
        scope: the part of the pipeline to build.
        record: record of the run; its last stage is the one that calls `build`.
        remote: as in `Store`.

    Attributes:
        before_build: called with the name of a stage about to be built; may raise to refuse it.
        on_begin: called once, before the first stage is built, after nothing refused it.
        has_begun: whether that has happened; until then the run has no record on disk.
        unbuilt: digests of missing artifacts that are outside the scope.
    """

    def __init__(
        self, root: Path | str, scope: Scope, record: RunRecord, remote: Remote | None = None
    ) -> None:
        super().__init__(root, remote)
        self.scope = scope
        self.record = record
        self.writes = not scope.is_dry
        self.before_build: Callable[[str], None] = lambda stage: None
        self.on_begin: Callable[[], None] = lambda: None
        self.has_begun = False
        self.unbuilt: set[str] = set()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Record the run from now on; does nothing the second time."""
        if not self.has_begun:
            self.has_begun = True
            self.on_begin()

    def save(self) -> None:
        """Write the record of a run that has begun and is not dry; safe to call from threads."""
        if self.writes and self.has_begun:
            with self._lock:
                self.record.save(self.runs)

    def rebuilds(self, stage: str) -> bool:
        """Return whether the scope builds a stage even if its artifact exists."""
        return self.scope.planned_mode(stage) is Mode.REMAKE

    def build(
        self,
        stage: str,
        values: Mapping[str, Any],
        inputs: Mapping[str, str],
        make: Callable[[Path, Path], None],
        version: int = 1,
    ) -> Artifact:
        """Return the artifact as `Store.build` does, or only its identity if out of scope.

        Raises:
            ConfigError: the artifact must exist and does not.
        """
        digest = self.digest(stage, values, inputs, version)
        found = self.find(stage, digest)
        reason = None
        if found is None and not self.is_remote(stage, digest):
            identity = artifact_identity(stage, values, inputs, version)
            reason = self._why_missing(digest, identity)
        elif self.rebuilds(stage):
            reason = f"requested (--from {self.scope.start})"
        current = self.record.stages[-1]
        current.digest, current.work, current.reason = digest, str(self.work(digest)), reason
        self.save()
        mode = self.scope.mode(stage)
        if mode is Mode.REQUIRE and reason is not None:
            raise ConfigError(
                f"--only {self.scope.only}: {stage} is not made yet ({reason}); run it first, or "
                "leave out --only"
            )
        if mode is Mode.TELL and (reason is not None or found is None):
            self.unbuilt.add(digest)
            return Artifact(stage, digest, str(self._folder(stage, digest)))
        if reason is not None:
            self.before_build(stage)
        if reason is not None or found is None:
            self.begin()
        return super().build(stage, values, inputs, make, version)

    def _why_missing(self, digest: str, identity: Mapping[str, Any]) -> str:
        """Say why an artifact does not exist, compared with the same stage of an earlier run."""
        stage = identity["stage"]
        if (self.work(digest) / "lock").exists():
            return "started but not finished"
        previous = self._previous_digests.get(self.record.stages[-1].name)
        if previous is None:
            return "not made before"
        if previous == digest:
            return "its folder is missing or incomplete"
        manifest = self.artifacts / f"{stage}-{previous}" / MANIFEST
        try:
            before = json.loads(manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "not made before"
        found = list(_differences(before.get("values", {}), identity["values"], stage))
        inputs, inputs_before = identity["inputs"], before.get("inputs", {})
        changed = [name for name in sorted(inputs) if inputs[name] != inputs_before.get(name)]
        found += [f"{name} changed" for name in changed]
        if before.get("version") != identity["version"]:
            found.append("this version of longred makes it differently")
        if not found:
            return "its inputs changed"
        rest = len(found) - MAX_DIFFERENCES
        return "; ".join(found[:MAX_DIFFERENCES]) + (f"; and {rest} more" if rest > 0 else "")

    @cached_property
    def _previous_digests(self) -> dict[str, str]:
        """Digest of each stage by name, from the newest run of the same recipe that has one."""
        digests: dict[str, str] = {}
        for run in newest_runs(self):
            if run.id == self.record.id or run.config.get("name") != self.record.config.get("name"):
                continue
            for name, stage in run.last_attempts().items():
                if stage.digest is not None and stage.status in ("ran", "skipped"):
                    digests.setdefault(name, stage.digest)
        return digests


def _differences(before: Any, after: Any, key: str) -> Iterator[str]:
    """Yield `key: old -> new` for every value that differs between two nested settings."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in sorted(before.keys() | after.keys()):
            yield from _differences(before.get(name), after.get(name), f"{key}.{name}")
    elif before != after:
        yield f"{key}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    if len(text) <= MAX_VALUE_CHARACTERS:
        return text
    return text[: MAX_VALUE_CHARACTERS - 3] + "..."
