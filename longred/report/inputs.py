"""Reads the artifacts of earlier stages for the report; a missing file stops it before drawing."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longred.errors import ConfigError
from longred.method.kept import kept_name
from longred.report.names import ORIGINAL, RESCALED
from longred.runs.record import RunRecord
from longred.store.artifacts import read_json
from longred.store.journal import JOURNAL_NAME, Journal

Series = dict[str, dict[int, float]]
"""Metric key → step → value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeBy:
    """The run that draws a report. It is not part of the digest: equal runs share one report.

    Attributes:
        run: id of the run.
        date: start of the run, in words.
        model: the original model as the recipe names it, and its commit if it has one.
    """

    run: str
    date: str
    model: str


def made_by(record: RunRecord) -> MadeBy:
    """Return what a page says of a run."""
    path, commit = record.config["model"]["path"], record.model_commit()
    name = "demo, the small model inside longred" if path == "demo" else str(path)
    return MadeBy(
        run=record.id,
        date=date_words(record.started),
        model=f"{name} at {commit}" if commit else name,
    )


def date_words(seconds: float) -> str:
    """Return a Unix time as date and minute in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that the report of a run is computed from.

    Attributes:
        recipe: the whole recipe as plain values.
        original_window: in tokens.
        method: trained method that the report is about.
        baselines: trained methods that it is compared with.
        seed: seed of the run.
        drift: profiled drift of the rescaled model.
        selection: the distilled layers and the reasons.
        trainings: method → its training.json.
        journals: method → its metrics.
        scores: model → folder of its evaluation artifact: references, baselines, the method last.
        kept: method → step → folder of the evaluation of the student saved at that step.
        samples: folder of the frozen samples on which all models were evaluated.
        stages: readable name of an artifact → its folder.
        made_by: the run that draws the report; None outside of a run.
    """

    recipe: Mapping[str, Any]
    original_window: int
    method: str
    baselines: list[str]
    seed: int
    drift: Mapping[str, Any]
    selection: Mapping[str, Any]
    trainings: Mapping[str, Mapping[str, Any]]
    journals: Mapping[str, Series]
    scores: Mapping[str, Path]
    kept: Mapping[str, Mapping[int, Path]]
    samples: Path
    stages: Mapping[str, Path]
    made_by: MadeBy | None = None

    @property
    def saved_students(self) -> dict[str, Path]:
        """Name of each saved student → folder of its evaluation."""
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
    made_by: MadeBy | None = None,
) -> Inputs:
    """Read the folders of the upstream artifacts.

    Raises:
        ConfigError: the recipe lacks original_window, or no model was evaluated.
        MismatchError: a folder lacks a file.
    """
    training: Mapping[str, Any] = recipe.get("training", {})
    final = dict(scores)
    kept: dict[str, dict[int, Path]] = {}
    for method in students:
        for step in training.get("keep_steps", []):
            folder = final.pop(kept_name(method, step), None)
            if folder is not None:
                kept.setdefault(method, {})[step] = folder
    if not final:
        raise ConfigError("evaluation.references: no model was evaluated, nothing to report")
    if not isinstance(recipe.get("original_window"), int):
        raise ConfigError("original_window: the report needs it to compare RULER lengths with")
    method = str(training.get("method", next(iter(students), "")))
    baselines = [name for name in students if name != method]
    others = [name for name in final if name not in students]
    order = dict.fromkeys([ORIGINAL, RESCALED, *others, *baselines, method, *final])
    return Inputs(
        recipe=recipe,
        original_window=recipe["original_window"],
        method=method,
        baselines=baselines,
        seed=int(recipe.get("seed", 0)),
        drift=read_json(profile / "drift.json"),
        selection=read_json(selection / "selection.json"),
        trainings={name: read_json(path / "training.json") for name, path in students.items()},
        journals={name: _read_series(path / JOURNAL_NAME) for name, path in students.items()},
        scores={name: final[name] for name in order if name in final},
        kept=kept,
        samples=samples,
        stages={
            "data": data,
            "profiling": profile,
            "selection": selection,
            **{f"training of {name}": path for name, path in students.items()},
            "frozen samples": samples,
        },
        made_by=made_by,
    )


def _read_series(path: Path) -> Series:
    """Return a journal as key → step → value; the last line of a step counts."""
    series: Series = {}
    for line in Journal(path).read():
        series.setdefault(str(line["key"]), {})[int(line["step"])] = float(line["value"])
    return series
