"""Compares several runs: the settings that differ, then the scores of their models."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from longred.errors import ConfigError
from longred.runs.mirror import comparable
from longred.runs.record import RunRecord
from longred.store.journal import JOURNAL_NAME, read_lines

SAMPLES = "evaluation/samples"
Scores = Mapping[str, Mapping[str, float]]
"""Model → metric key → value."""


@dataclass(frozen=True, slots=True)
class Row:
    """One setting, or one measure of one model, in every run.

    Attributes:
        key: dotted key of a setting; key of a metric, with `@ length` for a RULER measure.
        values: in the order of the runs, None if a run lacks it.
    """

    key: str
    values: list[Any]

    @property
    def digits(self) -> int:
        """Digits after the point: one for percentages, four for values near 1."""
        return 4 if self.key.startswith(("similarity", "held_out")) else 1

    def changes(self) -> list[Any]:
        """Return each later run's value minus the first run's."""
        first = self.values[0]
        return [
            None if value is None or first is None else value - first for value in self.values[1:]
        ]


@dataclass(frozen=True, slots=True)
class Model:
    """A model's measures in every run; `name` lists the names if they differ between runs."""

    name: str
    measures: list[Row]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Several runs side by side.

    Attributes:
        letters: a short name for each run, in order.
        runs: their records.
        differences: settings that they do not share.
        models: models with a measure that differs, the trained student first.
        same: names of the models that scored the same in all runs.
        questions_differ: whether their models were evaluated on different samples.
    """

    letters: list[str]
    runs: list[RunRecord]
    differences: list[Row]
    models: list[Model]
    same: list[str]
    questions_differ: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        keys = ("id", "recipe", "overrides", "status", "origin")
        return {
            "runs": [{key: getattr(run, key) for key in keys} for run in self.runs],
            "config": {each.key: each.values for each in self.differences},
            "questions_differ": self.questions_differ,
            "same": self.same,
            "scores": {
                model.name: {
                    each.key: {"values": each.values, "differences": each.changes()}
                    for each in model.measures
                }
                for model in self.models
            },
        }


def compare(runs: Sequence[RunRecord]) -> RunComparison:
    """Compare the settings and scores of runs.

    Raises:
        ConfigError: fewer than two runs are given, or one twice.
        MismatchError: an artifact of a run cannot be read.
    """
    ids = [run.id for run in runs]
    if not 2 <= len(set(ids)) == len(ids) <= len(ascii_uppercase):
        raise ConfigError(f"compare: give 2 to 26 different runs (got {', '.join(ids)})")
    models = list(_models(runs, [read_scores(run) for run in runs]))
    changed = [model for model in models if any(_differ(each.values) for each in model.measures)]
    attempts = [run.last_attempts() for run in runs]
    samples = {stages[SAMPLES].digest for stages in attempts if SAMPLES in stages}
    return RunComparison(
        letters=list(ascii_uppercase[: len(runs)]),
        runs=list(runs),
        differences=config_differences([run.config for run in runs]),
        models=changed,
        same=[model.name for model in models if model not in changed],
        questions_differ=len(samples) > 1,
    )


def config_differences(configs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return the dotted keys whose values are not the same in all configurations."""
    flat = [comparable(config) for config in configs]
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = [Row(key, [each.get(key) for each in flat]) for key in keys]
    return [row for row in rows if _differ(row.values)]


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)


def read_scores(run: RunRecord) -> Scores:
    """Return the scores of a run's models: model → metric key → value.

    They come from the run's report, or from the evaluations if there is no report.
    """
    stages = run.last_attempts()
    evaluations = {
        name.partition("/")[2]: stage
        for name, stage in stages.items()
        if name.startswith("evaluation/") and name != SAMPLES
    }
    report = stages.get("report")
    if report is not None and report.path:
        found: dict[str, dict[str, float]] = {model: {} for model in evaluations}
        for line in read_lines(Path(report.path) / JOURNAL_NAME, 0)[0]:
            model, _, key = line["key"].partition("/")
            if model in found:
                found[model][_key(key, line["step"])] = line["value"]
        return found
    folders = {name: Path(stage.path) for name, stage in evaluations.items() if stage.path}
    if not folders:
        return {}
    # Imported here: numpy would slow down the start of the command.
    from longred.report.scores import collect, model_metrics

    comparison = collect(
        folders,
        original_window=run.config["original_window"],
        min_points_above_chance=run.config["report"]["min_points_above_chance"],
    )
    return {
        model: {
            _key(key, step): value
            for step, values in model_metrics(comparison, model).items()
            for key, value in values.items()
        }
        for model in comparison.models
    }


def _key(key: str, step: int) -> str:
    return f"{key} @ {step:,}" if step else key


def _models(runs: Sequence[RunRecord], scores: Sequence[Scores]) -> Iterator[Model]:
    """Yield the trained students as one model, then every other model by name."""

    def model(label: str, names: Sequence[str]) -> Model:
        found = [each.get(name, {}) for each, name in zip(scores, names, strict=True)]
        keys = dict.fromkeys(key for each in found for key in each)
        return Model(label, [Row(key, [each.get(key) for each in found]) for key in keys])

    methods = [str(run.config["training"]["method"]) for run in runs]
    same_method = len(set(methods)) == 1
    yield model(methods[0] if same_method else f"student ({', '.join(methods)})", methods)
    for name in dict.fromkeys(name for each in scores for name in each):
        if not (same_method and name == methods[0]):
            yield model(name, [name] * len(runs))
