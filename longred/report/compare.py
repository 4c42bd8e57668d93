"""Compares several runs: their results, the settings that differ, the scores of each model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from longred.errors import ConfigError
from longred.report.names import BUILT_IN, metric_name
from longred.report.text_table import NOT_AVAILABLE, Table, read_blocks
from longred.runs.mirror import comparable
from longred.runs.record import RunRecord, StageRecord
from longred.store.artifacts import read_json
from longred.store.journal import JOURNAL_NAME, read_lines

if TYPE_CHECKING:
    from longred.report.scores import Comparison

SAMPLES = "evaluation/samples"
SAME_POINTS = 1e-6
"""Differences that are closer are the same, computed in another order."""
Scores = Mapping[str, Mapping[str, float]]
"""Model → metric key → value."""
Changes = Mapping[str, tuple[float, tuple[float, float]]]
"""Metric key → a difference in points, and its interval."""


@dataclass(frozen=True, slots=True)
class Row:
    """One setting, or one measure of one model, in every run.

    Attributes:
        key: dotted key of a setting; key of a metric, with `@ length` for a RULER measure.
        values: in the order of the runs, None if a run lacks it.
        intervals: of each of `changes`, None where it is unknown; empty if all are.
        mark: behind the name of a task, see `names.BUILT_IN`.
    """

    key: str
    values: list[Any]
    intervals: list[tuple[float, float] | None] = field(default_factory=list)
    mark: str = ""

    @property
    def name(self) -> str:
        """The name of a measure in tables."""
        key, _, length = self.key.partition(" @ ")
        return metric_name(key, int(length.replace(",", "") or 0), self.mark)

    @property
    def digits(self) -> int:
        """Digits after the point: one for percentages, four for values near 1."""
        key = self.key.removeprefix("by_step/")
        return 4 if key.startswith(("similarity", "attention_kl", "held_out")) else 1

    def changes(self) -> list[Any]:
        """Return each later run's value minus the first run's."""
        first = self.values[0]
        return [
            None if value is None or first is None else value - first for value in self.values[1:]
        ]

    def change_intervals(self) -> list[tuple[float, float] | None]:
        """Return the 95 % interval of each of `changes`, None where it is unknown."""
        return self.intervals or [None] * (len(self.values) - 1)


@dataclass(frozen=True, slots=True)
class Model:
    """A model's measures in every run.

    Attributes:
        name: for readers; it lists the names if they differ between runs.
        names: the model's name in each run.
        measures: what was measured.
    """

    name: str
    names: list[str]
    measures: list[Row]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Several runs side by side.

    Attributes:
        letters: a short name for each run, in order.
        runs: their records.
        results: the main results of all runs, the letters before each model's name; None if no
            run has any.
        differences: settings that they do not share.
        models: models with a measure that differs, the trained student first.
        same: names of the models that scored the same in all runs.
        questions_differ: whether their models were evaluated on different samples.
    """

    letters: list[str]
    runs: list[RunRecord]
    results: Table | None
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
                    each.key: {
                        "values": each.values,
                        "differences": each.changes(),
                        "intervals": each.change_intervals(),
                    }
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
    same = [model.name for model in models if model not in changed]
    if len(samples) == 1 and all(SAMPLES in stages for stages in attempts):
        changed = _with_intervals(changed, runs)
    letters = list(ascii_uppercase[: len(runs)])
    return RunComparison(
        letters=letters,
        runs=list(runs),
        results=merged_results(letters, [read_results(run) for run in runs]),
        differences=config_differences([run.config for run in runs]),
        models=changed,
        same=same,
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
    evaluations = _evaluations(run)
    report = run.last_attempts().get("report")
    if report is not None and report.path:
        found: dict[str, dict[str, float]] = {model: {} for model in evaluations}
        for line in read_lines(Path(report.path) / JOURNAL_NAME, 0)[0]:
            model, _, key = line["key"].partition("/")
            if model in found:
                found[model][_key(key, line["step"])] = line["value"]
        return found
    comparison = evaluated(run)
    if comparison is None:
        return {}
    from longred.report.scores import model_metrics

    return {
        model: {
            _key(key, step): value
            for step, values in model_metrics(comparison, model).items()
            for key, value in values.items()
        }
        for model in comparison.models
    }


def evaluated(run: RunRecord) -> "Comparison | None":
    """Compare the models of a run by its evaluations; None if no model was evaluated.

    Raises:
        MismatchError: an artifact of the run cannot be read.
    """
    folders = {name: Path(stage.path) for name, stage in _evaluations(run).items() if stage.path}
    if not folders:
        return None
    # Imported here: numpy would slow down the start of the command.
    from longred.report.scores import collect

    return collect(
        folders,
        original_window=run.config["original_window"],
        min_points_above_chance=run.config["report"]["min_points_above_chance"],
    )


def read_results(run: RunRecord) -> Table | None:
    """Return the main results of a run, one row per model, as its report has them.

    Without a report they come from the evaluations; None if there are none.
    """
    report = run.last_attempts().get("report")
    if report is not None and report.path:
        file = Path(report.path) / "table.md"
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        return next((each for each in read_blocks(text) if isinstance(each, Table)), None)
    comparison = evaluated(run)
    if comparison is None:
        return None
    from longred.report.tables import result_table

    return result_table(comparison)


def merged_results(letters: Sequence[str], results: Sequence[Table | None]) -> Table | None:
    """Return the results of several runs as one table; None if no run has results.

    A model with the same results in several runs is one row, headed by the letters of all of them.
    """
    given = [(letter, table) for letter, table in zip(letters, results, strict=True) if table]
    header = list(dict.fromkeys(name for _, table in given for name in table.header))
    rows: dict[tuple[str, ...], str] = {}
    for letter, table in given:
        for row in table.rows:
            cells = dict(zip(table.header, row, strict=True))
            key = tuple(cells.get(name, NOT_AVAILABLE) for name in header)
            rows[key] = rows.get(key, "") + letter
    merged = [[f"{which} {model}", *cells] for (model, *cells), which in rows.items()]
    return Table(header, merged) if merged else None


def _evaluations(run: RunRecord) -> dict[str, StageRecord]:
    """Return the last evaluation of each model of a run, by name."""
    return {
        name.partition("/")[2]: stage
        for name, stage in run.last_attempts().items()
        if name.startswith("evaluation/") and name != SAMPLES
    }


def _with_intervals(models: Sequence[Model], runs: Sequence[RunRecord]) -> list[Model]:
    """Return the models with the intervals of their differences from the first run.

    Only scores have any, of models whose answers to the same samples are in the store.
    """
    evaluations = [_evaluations(run) for run in runs]
    comparison = evaluated(runs[0]) if all(map(_has_answers, evaluations[0].values())) else None
    if comparison is None:
        return list(models)
    from longred.report.measures import changes

    found = []
    for model in models:
        stages = [each.get(name) for each, name in zip(evaluations, model.names, strict=True)]
        folders = [
            Path(str(stage.path)) if stage and _has_answers(stage) else None for stage in stages
        ]
        known: list[Changes] = []
        for folder in folders[1:]:
            points = changes(comparison, [folder, folders[0]]) if folder and folders[0] else {}
            known.append({_key(key, step): each for (key, step), each in points.items()})
        found.append(replace(model, measures=[_with_known(row, known) for row in model.measures]))
    return found


def _has_answers(stage: StageRecord) -> bool:
    return bool(stage.path) and Path(str(stage.path), "samples").is_dir()


def _with_known(row: Row, found: Sequence[Changes]) -> Row:
    """Return a row with the intervals of its differences.

    A run that averages over other tasks has another difference, which the interval is not of.
    """
    ends: list[tuple[float, float] | None] = []
    for change, known in zip(row.changes(), found, strict=True):
        points, interval = known.get(row.key, (None, None))
        is_same = points is not None and change is not None and abs(points - change) < SAME_POINTS
        ends.append(interval if is_same else None)
    return replace(row, intervals=ends)


def _built_in(run: RunRecord) -> Iterator[str]:
    """Yield the metric keys of RULER tasks that ask the packaged question set."""
    for stage in _evaluations(run).values():
        file = Path(str(stage.path), "scores.json")
        ruler = read_json(file)["ruler"] if stage.path and file.is_file() else {}
        for length, tasks in ruler.items():
            for task, entry in tasks.items():
                if entry.get("builtin"):
                    yield _key(f"ruler/{task}", int(length))


def _key(key: str, step: int) -> str:
    return f"{key} @ {step:,}" if step else key


def _models(runs: Sequence[RunRecord], scores: Sequence[Scores]) -> Iterator[Model]:
    """Yield the trained students as one model, then every other model by name."""
    marks = {key: BUILT_IN for run in runs for key in _built_in(run)}

    def model(label: str, names: Sequence[str]) -> Model:
        found = [each.get(name, {}) for each, name in zip(scores, names, strict=True)]
        keys = dict.fromkeys(key for each in found for key in each)
        rows = [
            Row(key, [each.get(key) for each in found], mark=marks.get(key, "")) for key in keys
        ]
        return Model(label, list(names), rows)

    methods = [str(run.config["training"]["method"]) for run in runs]
    same_method = len(set(methods)) == 1
    yield model(methods[0] if same_method else f"student ({', '.join(methods)})", methods)
    for name in dict.fromkeys(name for each in scores for name in each):
        if not (same_method and name == methods[0]):
            yield model(name, [name] * len(runs))
