"""Brings the scores of all models together: averages, retention, what was dropped."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longred.artifacts import read_json
from longred.report.intervals import Interval, difference, paired_interval, ratio
from longred.report.samples import Unit, paired_scores

ORIGINAL = "original"


@dataclass(frozen=True, slots=True)
class Dropped:
    """A task left out of every comparison, and why."""

    unit: Unit
    reason: str


@dataclass(frozen=True, slots=True)
class Difference:
    """The method minus a baseline on one average, in points, with its 95 % interval."""

    measure: str
    method: str
    baseline: str
    points: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several models under one evaluation.

    Attributes:
        models: name → {"short": {task: score, "average"}, "ruler": {length: {task: score,
            "average"}}, "retention": {"short", "ruler": {length}}, "retention_interval": the same
            with [low, high], "similarity", "similarity_per_layer", "nats_per_token",
            "bits_per_byte", "dropped"}; scores and retention in percent, None where a value cannot
            be told.
        raw: name → the model's scores.json, with dropped tasks, standard errors and chance.
        dropped: tasks that the original barely solves.
        differences: the method against each baseline.
        short_tasks: short tasks compared.
        ruler_tasks: length in tokens → RULER tasks compared there.
    """

    models: dict[str, dict[str, Any]]
    raw: dict[str, dict[str, Any]]
    dropped: list[Dropped]
    differences: list[Difference] = field(default_factory=list)
    short_tasks: list[str] = field(default_factory=list)
    ruler_tasks: dict[int, list[str]] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        """The RULER lengths asked, in tokens, ascending."""
        return list(self.ruler_tasks)


def collect(
    folders: Mapping[str, Path],
    *,
    original_window: int,
    min_points_above_chance: float,
    method: str | None = None,
    baselines: Sequence[str] = (),
    seed: int = 0,
) -> Comparison:
    """Compare the models whose evaluation folders are given, in the order given.

    A task that the original solves less than `min_points_above_chance` above chance is dropped for
    all models: a ratio to almost nothing says nothing. A RULER task is judged at each length up to
    `original_window`; beyond it, where the original was not made to work, at the longest such
    length. An average exists only where every compared task was scored. Retention is the ratio of
    the averages and exists for the short tasks and for RULER lengths up to `original_window`.

    Args:
        folders: model name → folder with scores.json and samples/.
        original_window: the original's window, in tokens.
        min_points_above_chance: in percentage points.
        method: the trained method that `differences` compares with each of `baselines`.
        baselines: names of models.
        seed: seed of the bootstrap.

    Raises:
        MismatchError: a folder lacks its scores, or two models answered different samples.
    """
    raw = {name: read_json(folder / "scores.json") for name, folder in folders.items()}
    units = _units(raw.values())
    dropped = _dropped(raw.get(ORIGINAL), units, original_window, min_points_above_chance)
    left_out = {entry.unit for entry in dropped}
    kept = [unit for unit in units if unit not in left_out]
    lengths = sorted({unit.length for unit in units if unit.length is not None})
    short = [unit.task for unit in kept if unit.length is None]
    ruler = {length: [unit.task for unit in kept if unit.length == length] for length in lengths}
    comparison = Comparison({}, raw, dropped, short_tasks=short, ruler_tasks=ruler)
    for name in folders:
        comparison.models[name] = _averages(comparison, name)
    for name in folders:
        comparison.models[name].update(_retention(comparison, folders, name, original_window, seed))
    if method is not None and method in folders:
        for baseline in baselines:
            if baseline in folders and baseline != method:
                comparison.differences.extend(
                    _differences(comparison, folders, method, baseline, seed)
                )
    return comparison


def average(values: Iterable[float | None]) -> float | None:
    """Return the mean, or None where there is no value or one is missing."""
    numbers = list(values)
    present = [number for number in numbers if number is not None]
    return sum(present) / len(present) if present and len(present) == len(numbers) else None


def score_of(raw: Mapping[str, Any], unit: Unit) -> Mapping[str, Any] | None:
    """Return a model's {"score", "stderr", "num_samples", "chance"} for a unit, or None."""
    group: Mapping[str, Any] = raw.get("short", {})
    if unit.length is not None:
        group = raw.get("ruler", {}).get(str(unit.length), {})
    entry = group.get(unit.task)
    return entry if isinstance(entry, Mapping) and entry.get("score") is not None else None


def _units(raw: Iterable[Mapping[str, Any]]) -> list[Unit]:
    """Return every unit that some model was asked, each once, short tasks first."""
    found: dict[Unit, None] = {}
    models = list(raw)
    for model in models:
        found.update(dict.fromkeys(Unit(task) for task in model.get("short", {})))
    for model in models:
        for length in sorted(model.get("ruler", {}), key=int):
            found.update(dict.fromkeys(Unit(task, int(length)) for task in model["ruler"][length]))
    return list(found)


def _dropped(
    original: Mapping[str, Any] | None, units: Sequence[Unit], original_window: int, minimum: float
) -> list[Dropped]:
    if original is None:
        return []
    dropped = []
    for unit in units:
        judged = unit
        if unit.length is not None and unit.length > original_window:
            within = [
                other.length
                for other in units
                if other.task == unit.task
                and other.length is not None
                and other.length <= original_window
            ]
            if not within:
                continue
            judged = Unit(unit.task, max(within))
        entry = score_of(original, judged)
        if entry is None:
            continue
        chance = float(entry.get("chance") or 0.0)
        if float(entry["score"]) - chance < minimum:
            where = "" if judged == unit else f" at {judged.length:,} tokens"
            reason = (
                f"the original scores {entry['score']:.1f}{where} where guessing scores "
                f"{chance:.1f}; "
                f"at least {minimum:g} points more are needed"
            )
            dropped.append(Dropped(unit, reason))
    return dropped


def _averages(comparison: Comparison, name: str) -> dict[str, Any]:
    raw = comparison.raw[name]

    def scored(tasks: Sequence[str], length: int | None = None) -> dict[str, float | None]:
        entries = {task: score_of(raw, Unit(task, length)) for task in tasks}
        scores = {task: float(entry["score"]) if entry else None for task, entry in entries.items()}
        return {**scores, "average": average(scores.values())}

    similarity = raw.get("similarity") or {}
    left_out = [(entry, score_of(raw, entry.unit)) for entry in comparison.dropped]
    return {
        "short": scored(comparison.short_tasks),
        "ruler": {
            str(length): scored(tasks, length) for length, tasks in comparison.ruler_tasks.items()
        },
        "similarity": similarity.get("last"),
        "similarity_per_layer": similarity.get("per_layer"),
        "nats_per_token": raw.get("nats_per_token"),
        "bits_per_byte": raw.get("bits_per_byte"),
        "dropped": [
            {
                "task": dropped.unit.task,
                "length": dropped.unit.length,
                "score": entry["score"] if entry else None,
                "reason": dropped.reason,
            }
            for dropped, entry in left_out
        ],
    }


def _retention(
    comparison: Comparison, folders: Mapping[str, Path], name: str, original_window: int, seed: int
) -> dict[str, Any]:
    model, original = comparison.models[name], comparison.models.get(ORIGINAL)

    def retained(
        units: list[Unit], score: float | None, reference: float | None
    ) -> tuple[float | None, list[float] | None]:
        if score is None or not reference:
            return None, None
        interval = None
        if name != ORIGINAL:
            pairs = paired_scores(folders[name], folders[ORIGINAL], units)
            interval = paired_interval(pairs, ratio, seed=seed)
        return 100.0 * score / reference, list(interval) if interval else None

    short: tuple[float | None, list[float] | None] = (None, None)
    if original:
        units = [Unit(task) for task in comparison.short_tasks]
        short = retained(units, model["short"]["average"], original["short"]["average"])
    values: dict[str, float | None] = {}
    intervals: dict[str, list[float] | None] = {}
    for length, tasks in comparison.ruler_tasks.items():
        key = str(length)
        values[key], intervals[key] = None, None
        if original and length <= original_window:
            reference = original["ruler"][key]["average"]
            units = [Unit(task, length) for task in tasks]
            values[key], intervals[key] = retained(units, model["ruler"][key]["average"], reference)
    return {
        "retention": {"short": short[0], "ruler": values},
        "retention_interval": {"short": short[1], "ruler": intervals},
    }


def _differences(
    comparison: Comparison, folders: Mapping[str, Path], method: str, baseline: str, seed: int
) -> list[Difference]:
    ours, theirs = comparison.models[method], comparison.models[baseline]
    measures = [
        (
            "short average",
            [Unit(task) for task in comparison.short_tasks],
            ours["short"],
            theirs["short"],
        )
    ]
    for length, tasks in comparison.ruler_tasks.items():
        key = str(length)
        units = [Unit(task, length) for task in tasks]
        measures.append(
            (f"RULER at {length:,} tokens", units, ours["ruler"][key], theirs["ruler"][key])
        )
    found = []
    for measure, units, left, right in measures:
        if left["average"] is None or right["average"] is None:
            continue
        pairs = paired_scores(folders[method], folders[baseline], units)
        interval = paired_interval(pairs, difference, seed=seed)
        points = left["average"] - right["average"]
        found.append(Difference(measure, method, baseline, points, interval))
    return found
