"""The averages that models are compared by, and the intervals of scores, ratios and differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longred.config.evaluation import RULER_V2_TASKS
from longred.evaluation.intervals import Averages, Ends, Interval, interval
from longred.report.names import ORIGINAL, RULER, RULER_V2
from longred.report.samples import DrawReader, Unit

if TYPE_CHECKING:
    from longred.report.scores import Comparison


@dataclass(frozen=True, slots=True)
class Difference:
    """The method minus a baseline on one average, in points, with its 95 % interval."""

    measure: str
    method: str
    baseline: str
    points: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Measure:
    """One average: the weighted mean over `units`, found at `group` and `key` of a model."""

    name: str
    group: str
    key: str | None
    length: int
    units: tuple[Unit, ...]
    weights: tuple[float, ...] | None = None

    def of(self, model: Mapping[str, Any]) -> float | None:
        """Return a model's score, in percent."""
        values = model[self.group] if self.key is None else model[self.group][self.key]
        score: float | None = values["average"] if isinstance(values, Mapping) else values
        return score


def measures(comparison: "Comparison") -> list[Measure]:
    """Return the averages to compare models by: short, capacities, RULER and v2 by length."""
    units, weights = tuple(comparison.short_units()), tuple(comparison.short_weights)
    found = [Measure("short average", "short", None, 0, units, weights)]
    for capacity, tasks in comparison.capacities.items():
        units = tuple(Unit(task) for task in tasks)
        found.append(Measure(capacity, "capacities", capacity, 0, units))
    for length, tasks in comparison.ruler_tasks.items():
        found.append(_at_length(RULER, "ruler", length, tasks))
    for length in comparison.v2_lengths:
        found.append(_at_length(RULER_V2, "ruler_v2", length, RULER_V2_TASKS))
    return found


def _at_length(version: str, group: str, length: int, tasks: Sequence[str]) -> Measure:
    units = tuple(Unit(task, length) for task in tasks)
    return Measure(f"{version} at {length:,} tokens", group, str(length), length, units)


def _interval(
    reader: DrawReader, folders: Sequence[Path], measure: Measure, ends: Callable[[Averages], Ends]
) -> Interval | None:
    """Return the interval of an average; None if the answers to some task were not saved."""
    draws = reader.read(folders, measure.units)
    return interval(ends(Averages(draws, measure.weights))) if draws else None


def _arranged(found: Mapping[Measure, float | Interval | None]) -> dict[str, Any]:
    """Return values as {"short", "capacities": {name}, "ruler" and "ruler_v2": {length}}."""
    values: dict[str, Any] = {"short": None, "capacities": {}, "ruler": {}, "ruler_v2": {}}
    for measure, value in found.items():
        if measure.key is None:
            values[measure.group] = _plain(value)
        else:
            values[measure.group][measure.key] = _plain(value)
    return values


def _plain(value: float | Interval | None) -> float | list[float] | None:
    return list(value) if isinstance(value, tuple) else value


def score_intervals(
    comparison: "Comparison", reader: DrawReader, folder: Path, name: str
) -> dict[str, Any]:
    """Return the intervals of a model's averages as {"interval": …}."""
    found: dict[Measure, Interval | None] = {}
    for measure in measures(comparison):
        is_known = measure.of(comparison.models[name]) is not None
        found[measure] = _interval(reader, [folder], measure, Averages.mean) if is_known else None
    return {"interval": _arranged(found)}


def retention(
    comparison: "Comparison",
    reader: DrawReader,
    folders: Mapping[str, Path],
    name: str,
    original_window: int,
) -> dict[str, Any]:
    """Return a model's averages in percent of the original's, and their intervals.

    The original has none, and no model at RULER lengths beyond the original's window.
    """
    original = comparison.models.get(ORIGINAL)
    values: dict[Measure, float | None] = {}
    intervals: dict[Measure, Interval | None] = {}
    for measure in measures(comparison):
        values[measure] = intervals[measure] = None
        score = measure.of(comparison.models[name])
        reference = measure.of(original) if original else None
        if score is None or not reference or measure.length > original_window:
            continue
        values[measure] = 100.0 * score / reference
        if name != ORIGINAL:
            pair = [folders[name], folders[ORIGINAL]]
            intervals[measure] = _interval(reader, pair, measure, Averages.ratio)
    return {"retention": _arranged(values), "retention_interval": _arranged(intervals)}


def differences(
    comparison: "Comparison",
    reader: DrawReader,
    folders: Mapping[str, Path],
    method: str,
    baseline: str,
) -> list[Difference]:
    """Return the method minus a baseline: short average, then RULER and v2 by length."""
    found = []
    for measure in measures(comparison):
        ours, theirs = (measure.of(comparison.models[name]) for name in (method, baseline))
        if measure.group == "capacities" or ours is None or theirs is None:
            continue
        pair = [folders[method], folders[baseline]]
        ends = _interval(reader, pair, measure, Averages.difference)
        found.append(Difference(measure.name, method, baseline, ours - theirs, ends))
    return found


def changes(
    comparison: "Comparison", pair: Sequence[Path]
) -> dict[tuple[str, int], tuple[float, Interval]]:
    """Return the differences between two evaluations on the same samples, with intervals.

    Args:
        comparison: the tasks in question, and what averages there are.
        pair: the folders of both evaluations; the second is subtracted.

    Returns:
        (metric key, step), as in `scores.model_metrics`, → points and their interval.

    Raises:
        MismatchError: the evaluations are of different samples.
    """
    keys = {"short": "capacity/short"}
    keys |= {group: f"{group}/average" for group in ("ruler", "ruler_v2")}
    asked = {
        (keys.get(each.group, f"capacity/{each.key}"), each.length): each
        for each in measures(comparison)
    }
    for unit in comparison.short_units() + comparison.ruler_units() + comparison.v2_units():
        name = "ruler" if unit.length else "short"
        key = (f"{name}/{unit.task}", unit.length or 0)
        asked[key] = Measure(unit.task, name, None, unit.length or 0, (unit,))
    reader, found = DrawReader(), {}
    for key, measure in asked.items():
        draws = reader.read(pair, measure.units)
        if draws:
            averages = Averages(draws, measure.weights)
            ends = interval(averages.difference())
            if ends is not None:
                found[key] = (float(averages.points()), ends)
    return found
