"""Several runs beside each other: first what was set differently, then how the models scored."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from longred.errors import ConfigError
from longred.runs.mirror import comparable
from longred.runs.record import RunRecord
from longred.store.journal import JOURNAL_NAME, read_lines

Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that not all runs share; `values` in the order of the runs, None where unset."""

    key: str
    values: list[Any]


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of one model in every run.

    Attributes:
        key: the metric's key, with `@ length` for one that is asked at several.
        values: in the order of the runs, None where a run has none.
    """

    key: str
    values: list[float | None]

    @property
    def digits(self) -> int:
        """How many digits after the point say something: percent need less than what is near 1."""
        return 4 if self.key.startswith(("similarity", "held_out")) else 1

    def changes(self) -> list[float | None]:
        """Return each later run's value minus the first run's."""
        first = self.values[0]
        return [
            None if value is None or first is None else value - first for value in self.values[1:]
        ]


@dataclass(frozen=True, slots=True)
class Model:
    """A model's measures in every run; `name` says which model, where runs differ each one's."""

    name: str
    measures: list[Measure]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Runs beside each other.

    Attributes:
        letters: a short name for each run, in order.
        runs: their records.
        differences: settings that they do not share.
        models: those with a measure that differs, the trained student first.
        same: names of the models that scored the same in all runs.
        questions_differ: whether their models were asked different questions.
    """

    letters: list[str]
    runs: list[RunRecord]
    differences: list[Difference]
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
    """Put runs beside each other.

    Raises:
        ConfigError: less than two runs are given, or one twice.
        MismatchError: an artifact of a run cannot be read.
    """
    ids = [run.id for run in runs]
    if not 2 <= len(set(ids)) == len(ids) <= len(ascii_uppercase):
        raise ConfigError(f"compare: give 2 to 26 different runs (got {', '.join(ids)})")
    scores = [read_scores(run) for run in runs]
    models = list(_models(runs, scores))
    moved = [model for model in models if any(map(_differ, model.measures))]
    samples = {
        stage.digest
        for run in runs
        for name, stage in run.last_attempts().items()
        if name == "evaluation/samples"
    }
    return RunComparison(
        letters=list(ascii_uppercase[: len(runs)]),
        runs=list(runs),
        differences=config_differences([run.config for run in runs]),
        models=moved,
        same=[model.name for model in models if model not in moved],
        questions_differ=len(samples) > 1,
    )


def config_differences(configs: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Return the dotted keys whose values are not the same in all configurations."""
    flat = [comparable(config) for config in configs]
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = [Difference(key, [each.get(key) for each in flat]) for key in keys]
    return [row for row in rows if any(value != row.values[0] for value in row.values)]


def read_scores(run: RunRecord) -> Scores:
    """Return what a run's models scored: model → metric key → value.

    The run's report has them; where it was not made, they are computed from the evaluations.
    """
    stages = run.last_attempts()
    report = stages.get("report")
    if report is not None and report.path:
        return _from_journal(run, Path(report.path))
    folders = {
        name.partition("/")[2]: Path(stage.path)
        for name, stage in stages.items()
        if name.startswith("evaluation/") and name != "evaluation/samples" and stage.path
    }
    if not folders:
        return {}
    from longred.report.scores import collect
    from longred.report.write import metrics

    comparison = collect(
        folders,
        original_window=run.config["original_window"],
        min_points_above_chance=run.config["report"]["min_points_above_chance"],
    )
    return {
        model: {
            _key(key, step): value
            for step, values in metrics(comparison, model).items()
            for key, value in values.items()
        }
        for model in comparison.models
    }


def _from_journal(run: RunRecord, report: Path) -> Scores:
    models = [
        name.partition("/")[2]
        for name in run.last_attempts()
        if name.startswith("evaluation/") and name != "evaluation/samples"
    ]
    found: dict[str, dict[str, float]] = {model: {} for model in models}
    for line in read_lines(report / JOURNAL_NAME, 0)[0]:
        model, _, key = line["key"].partition("/")
        if model in found:
            found[model][_key(key, line["step"])] = line["value"]
    return found


def _key(key: str, step: int) -> str:
    return f"{key} @ {step:,}" if step else key


def _models(runs: Sequence[RunRecord], scores: Sequence[Scores]) -> Iterator[Model]:
    """Yield the trained students as one model, then every other model by its name."""
    methods = [str(run.config["training"]["method"]) for run in runs]
    together = len(set(methods)) == 1
    label = methods[0] if together else f"student ({', '.join(methods)})"
    yield _model(label, [each.get(method) for each, method in zip(scores, methods, strict=True)])
    for name in dict.fromkeys(name for each in scores for name in each):
        if not (together and name == methods[0]):
            yield _model(name, [each.get(name) for each in scores])


def _model(name: str, found: Sequence[Mapping[str, float] | None]) -> Model:
    keys = dict.fromkeys(key for each in found if each for key in each)
    rows = [Measure(key, [each.get(key) if each else None for each in found]) for key in keys]
    return Model(name, rows)


def _differ(measure: Measure) -> bool:
    return any(value != measure.values[0] for value in measure.values)
