"""Names what each number of a report came from: artifacts, checkpoints, environment."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longred.report.tables import NOT_AVAILABLE, Table
from longred.store.artifacts import DIGEST_LENGTH, MANIFEST, canonical_digest, read_json


def artifact_digest(folder: Path) -> str:
    """Return the digest of a committed artifact, or n/a for a folder that is not one."""
    if not (folder / MANIFEST).is_file():
        return NOT_AVAILABLE
    return str(read_json(folder / MANIFEST).get("digest", NOT_AVAILABLE))


def input_digest(folder: Path, name: str) -> str:
    """Return the digest of one input that a committed artifact was made from, or n/a."""
    if not (folder / MANIFEST).is_file():
        return NOT_AVAILABLE
    return str(read_json(folder / MANIFEST).get("inputs", {}).get(name, NOT_AVAILABLE))


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """Return the digest of the settings of a whole run."""
    return canonical_digest(json.loads(json.dumps(recipe)))[:DIGEST_LENGTH]


def artifact_table(stages: Mapping[str, Path]) -> Table:
    """Return each stage's artifact digest, and those of what profiling was made from."""
    upstream = {name: input_digest(stages["profiling"], name) for name in ("model", "extension")}
    digests = {**upstream, **{stage: artifact_digest(path) for stage, path in stages.items()}}
    return Table(["stage", "artifact"], [[stage, digest] for stage, digest in digests.items()])


def model_table(scores: Mapping[str, Path], raw: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return each model's checkpoint digest, and the artifacts of its questions and scores."""
    rows = [
        [
            name,
            str(raw.get(name, {}).get("checkpoint") or input_digest(folder, "checkpoint")),
            input_digest(folder, "samples"),
            artifact_digest(folder),
        ]
        for name, folder in scores.items()
    ]
    return Table(["model", "checkpoint", "frozen samples", "scores"], rows)


def training_table(trainings: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return how each student was trained: steps, tokens, time and speed."""
    rows = [
        [
            name,
            _count(training.get("num_steps")),
            _count(training.get("tokens")),
            _decimal(training.get("seconds")),
            _count(training.get("tokens_per_second")),
            _rows(training.get("rows")),
        ]
        for name, training in trainings.items()
    ]
    return Table(["student", "steps", "tokens", "seconds", "tokens/second", "blocks a step"], rows)


def environment_lines(trainings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the software and hardware of the trainings, one line each, every line once."""
    lines: dict[str, None] = {}
    for training in trainings.values():
        environment = training.get("environment")
        if isinstance(environment, Mapping):
            lines.update((f"{key}: {value}", None) for key, value in environment.items())
    return list(lines)


def _count(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else NOT_AVAILABLE


def _decimal(value: Any) -> str:
    return f"{value:,.1f}" if isinstance(value, int | float) else NOT_AVAILABLE


def _rows(value: Any) -> str:
    if not isinstance(value, Mapping):
        return NOT_AVAILABLE
    return ", ".join(f"{bucket} {count}" for bucket, count in value.items())
