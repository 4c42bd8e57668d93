"""Reads what the stages left for the report; a missing file stops it before anything is drawn."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longred.errors import ConfigError
from longred.method.kept import kept_name
from longred.store.artifacts import read_json
from longred.store.journal import JOURNAL_NAME, Journal

REFERENCES = ("original", "rescaled")
"""Models that are not trained, and lead every table."""

Series = dict[str, dict[int, float]]
"""Metric key → step → value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that a report tells of.

    Attributes:
        recipe: the whole recipe as plain values.
        method: the trained method that the report is about.
        drift: what profiling measured.
        selection: the distilled layers and why.
        trainings: method → its training.json.
        journals: method → its metrics.
        scores: model → folder of its evaluation artifact: references, baselines, the method last.
        kept: method → step → folder of the evaluation of the student that was kept there.
        samples: folder of the frozen samples that all models were asked.
        stages: what a reader calls an artifact → its folder.
    """

    recipe: Mapping[str, Any]
    method: str
    drift: Mapping[str, Any]
    selection: Mapping[str, Any]
    trainings: Mapping[str, Mapping[str, Any]]
    journals: Mapping[str, Series]
    scores: Mapping[str, Path]
    kept: Mapping[str, Mapping[int, Path]]
    samples: Path
    stages: Mapping[str, Path]

    @property
    def original_window(self) -> int:
        """The original's window, in tokens."""
        return int(self.recipe["original_window"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.recipe.get("seed", 0))

    @property
    def baselines(self) -> list[str]:
        """The trained methods that it is compared with."""
        return [name for name in self.trainings if name != self.method]

    @property
    def on_the_way(self) -> dict[str, Path]:
        """Name of each kept student → folder of its evaluation."""
        return {
            kept_name(method, step): folder
            for method, steps in self.kept.items()
            for step, folder in steps.items()
        }


def read_inputs(
    *,
    recipe: Mapping[str, Any],
    profile: Path,
    selection: Path,
    students: Mapping[str, Path],
    scores: Mapping[str, Path],
    data: Path,
    samples: Path,
) -> Inputs:
    """Read the folders of the upstream artifacts.

    Raises:
        ConfigError: the recipe does not say its original_window, or no model was evaluated.
        MismatchError: a folder lacks a file.
    """
    kept = _kept(recipe, students, scores)
    on_the_way = {folder for steps in kept.values() for folder in steps.values()}
    scores = {name: folder for name, folder in scores.items() if folder not in on_the_way}
    if not scores:
        raise ConfigError("evaluation.references: no model was evaluated, nothing to report")
    if not isinstance(recipe.get("original_window"), int):
        raise ConfigError("original_window: the report needs it to compare RULER lengths with")
    training: Mapping[str, Any] = recipe.get("training", {})
    method = str(training.get("method", next(iter(students), "")))
    order = [*REFERENCES, *(name for name in students if name != method), method]
    ordered = [name for name in order if name in scores]
    ordered += [name for name in scores if name not in ordered]
    return Inputs(
        recipe=recipe,
        method=method,
        drift=read_json(profile / "drift.json"),
        selection=read_json(selection / "selection.json"),
        trainings={name: read_json(path / "training.json") for name, path in students.items()},
        journals={name: read_series(path / JOURNAL_NAME) for name, path in students.items()},
        scores={name: scores[name] for name in ordered},
        kept=kept,
        samples=samples,
        stages={
            "data": data,
            "profiling": profile,
            "selection": selection,
            **{f"training of {name}": path for name, path in students.items()},
            "frozen samples": samples,
        },
    )


def _kept(
    recipe: Mapping[str, Any], methods: Iterable[str], scores: Mapping[str, Path]
) -> dict[str, dict[int, Path]]:
    steps = recipe.get("training", {}).get("keep_steps", [])
    found = {
        method: {
            step: scores[name] for step in steps if (name := kept_name(method, step)) in scores
        }
        for method in methods
    }
    return {method: by_step for method, by_step in found.items() if by_step}


def read_series(path: Path) -> Series:
    """Return a journal as key → step → value; the last line of a step counts."""
    series: Series = {}
    for line in Journal(path).read():
        series.setdefault(str(line["key"]), {})[int(line["step"])] = float(line["value"])
    return series
