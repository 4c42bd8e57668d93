"""Brings the scores of all models together: averages, retention, what was dropped."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longred.errors import MismatchError
from longred.report.intervals import Interval, difference, paired_interval, ratio
from longred.report.samples import Unit, paired_scores
from longred.store.artifacts import read_json

ORIGINAL = "original"
BESIDE_RULER = ("kv_retrieval",)


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
        models: name → {"short": {task: score, "average"}, "capacities": {capacity: score},
            "ruler": {length: {task: score, "average"}}, "retention": {"short", "capacities":
            {capacity}, "ruler": {length}}, "overall": the mean over capacities and the RULER
            average at the longest length, as published, "retention_interval": the same with
            [low, high], "similarity", "similarity_per_layer", "nats_per_token", "bits_per_byte",
            "dropped", "dropped_capacities"}; scores and retention in percent, None where a value
            cannot be told. The short average is the mean over capacities of the mean over the tasks
            of each.
        raw: name → the model's scores.json, with dropped tasks, standard errors and chance.
        dropped: tasks that the original barely solves.
        dropped_capacities: those that no task is left of.
        differences: the method against each baseline.
        capacities: capacity → its short tasks compared.
        ruler_tasks: length in tokens → RULER tasks compared there.
    """

    models: dict[str, dict[str, Any]]
    raw: dict[str, dict[str, Any]]
    dropped: list[Dropped]
    dropped_capacities: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    capacities: dict[str, list[str]] = field(default_factory=dict)
    ruler_tasks: dict[int, list[str]] = field(default_factory=dict)

    @property
    def short_tasks(self) -> list[str]:
        """The short tasks compared, capacity by capacity."""
        return [task for tasks in self.capacities.values() for task in tasks]

    @property
    def short_weights(self) -> list[float]:
        """What each of `short_tasks` counts in the short average, in sum 1."""
        return [
            1 / (len(self.capacities) * len(tasks))
            for tasks in self.capacities.values()
            for _ in tasks
        ]

    @property
    def lengths(self) -> list[int]:
        """The RULER lengths asked, in tokens, ascending."""
        return list(self.ruler_tasks)


def collect(
    folders: Mapping[str, Path],
    *,
    original_window: int,
    min_points_above_chance: float,
    dropped: Sequence[Dropped] | None = None,
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
        dropped: leave out exactly these, however the original scores them.
        method: the trained method that `differences` compares with each of `baselines`.
        baselines: names of models.
        seed: seed of the bootstrap.

    Raises:
        MismatchError: a folder lacks its scores, a short task does not say its capacity, or two
            models answered different samples.
    """
    raw = {name: read_json(folder / "scores.json") for name, folder in folders.items()}
    if dropped is None:
        original = raw.get(ORIGINAL, {})
        units = units_of(raw.values())
        dropped = barely_solved(original, units, original_window, min_points_above_chance)
    left_out = [*dropped, *_beside(units_of(raw.values()), dropped)]
    comparison = _compared(raw, left_out, _capacities(folders, raw))
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


def units_of(raw: Iterable[Mapping[str, Any]]) -> list[Unit]:
    """Return every unit that some model was asked, each once, short tasks first."""
    found: dict[Unit, None] = {}
    models = list(raw)
    for model in models:
        found.update(dict.fromkeys(Unit(task) for task in model.get("short", {})))
    for model in models:
        for length in sorted(model.get("ruler", {}), key=int):
            found.update(dict.fromkeys(Unit(task, int(length)) for task in model["ruler"][length]))
    return list(found)


def _capacities(
    folders: Mapping[str, Path], raw: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Return the capacity of every short task that some model was asked."""
    found: dict[str, str] = {}
    for name, model in raw.items():
        for task, entry in model.get("short", {}).items():
            capacity = entry.get("capacity")
            if not capacity or found.setdefault(task, capacity) != capacity:
                raise MismatchError(
                    f"{folders[name] / 'scores.json'}: short.{task}.capacity is {capacity}, "
                    f"expected {found.get(task, 'a name')}; evaluate the model again"
                )
    return found


def _compared(
    raw: dict[str, dict[str, Any]], dropped: list[Dropped], capacities: Mapping[str, str]
) -> Comparison:
    """Return which tasks count where; the models' values are still missing."""
    units = units_of(raw.values())
    left_out = {entry.unit for entry in dropped}
    kept = [unit for unit in units if unit not in left_out]
    lengths = sorted({unit.length for unit in units if unit.length is not None})
    by_capacity: dict[str, list[str]] = {capacity: [] for capacity in capacities.values()}
    for unit in kept:
        if unit.length is None:
            by_capacity[capacities[unit.task]].append(unit.task)
    return Comparison(
        {},
        raw,
        dropped,
        dropped_capacities=[name for name, tasks in by_capacity.items() if not tasks],
        capacities={name: tasks for name, tasks in by_capacity.items() if tasks},
        ruler_tasks={n: [unit.task for unit in kept if unit.length == n] for n in lengths},
    )


def _beside(units: Sequence[Unit], dropped: Sequence[Dropped]) -> list[Dropped]:
    """Return the long tasks that are asked and are not RULER's; an average is of RULER alone."""
    known = {entry.unit for entry in dropped}
    reason = "it is not one of RULER's tasks and counts in no average"
    return [
        Dropped(unit, reason)
        for unit in units
        if unit.length is not None and unit.task in BESIDE_RULER and unit not in known
    ]


def barely_solved(
    original: Mapping[str, Any], units: Sequence[Unit], original_window: int, minimum: float
) -> list[Dropped]:
    """Return the tasks that are to be dropped, and why.

    Args:
        original: the original's scores.json; tasks that it was not asked are not judged.
        units: the tasks in question.
        original_window: its window, in tokens; RULER beyond it is judged by the longest length
            within.
        minimum: percentage points above chance that a task needs.
    """
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

    short = scored(comparison.short_tasks)
    capacities = {
        capacity: average(short[task] for task in tasks)
        for capacity, tasks in comparison.capacities.items()
    }
    ruler = {str(length): scored(tasks, length) for length, tasks in comparison.ruler_tasks.items()}
    # As published: the capacities and RULER, each once; of RULER the longest length.
    longest = [ruler[str(max(comparison.lengths))]["average"]] if ruler else [None]
    similarity = raw.get("similarity") or {}
    left_out = [(entry, score_of(raw, entry.unit)) for entry in comparison.dropped]
    return {
        "short": {**short, "average": average(capacities.values())},
        "capacities": capacities,
        "ruler": ruler,
        "overall": average([*capacities.values(), *longest]) if capacities else None,
        "similarity": similarity.get("last"),
        "similarity_per_layer": similarity.get("per_layer"),
        "attention_kl": similarity.get("attention_kl"),
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
        "dropped_capacities": comparison.dropped_capacities,
    }


def _retention(
    comparison: Comparison, folders: Mapping[str, Path], name: str, original_window: int, seed: int
) -> dict[str, Any]:
    reference = {measure.name: measure for measure in _measures(comparison, ORIGINAL)}
    values: dict[str, Any] = {"short": None, "capacities": {}, "ruler": {}}
    intervals: dict[str, Any] = {"short": None, "capacities": {}, "ruler": {}}
    for measure in _measures(comparison, name):
        value: float | None = None
        interval: Interval | None = None
        original = reference[measure.name].score if reference else None
        if measure.score is not None and original and measure.length <= original_window:
            value = 100.0 * measure.score / original
            if name != ORIGINAL:
                pairs = paired_scores(folders[name], folders[ORIGINAL], measure.units)
                interval = paired_interval(pairs, ratio, weights=measure.weights, seed=seed)
        group, key = measure.place
        ends = list(interval) if interval else None
        if key is None:
            values[group], intervals[group] = value, ends
        else:
            values[group][key], intervals[group][key] = value, ends
    return {"retention": values, "retention_interval": intervals}


@dataclass(frozen=True, slots=True)
class _Measure:
    """One average of one model, and what it is the weighted mean of."""

    name: str
    place: tuple[str, str | None]
    length: int
    units: list[Unit]
    weights: list[float] | None
    score: float | None


def _measures(comparison: Comparison, name: str) -> list[_Measure]:
    """Return a model's averages: short, each capacity, RULER at each length; none if unknown."""
    model = comparison.models.get(name)
    if model is None:
        return []
    short = [Unit(task) for task in comparison.short_tasks]
    weights, score = comparison.short_weights, model["short"]["average"]
    found = [_Measure("short average", ("short", None), 0, short, weights, score)]
    for capacity, tasks in comparison.capacities.items():
        units, score = [Unit(task) for task in tasks], model["capacities"][capacity]
        found.append(_Measure(capacity, ("capacities", capacity), 0, units, None, score))
    for length, tasks in comparison.ruler_tasks.items():
        label, key = f"RULER at {length:,} tokens", str(length)
        units, score = [Unit(task, length) for task in tasks], model["ruler"][key]["average"]
        found.append(_Measure(label, ("ruler", key), length, units, None, score))
    return found


def _differences(
    comparison: Comparison, folders: Mapping[str, Path], method: str, baseline: str, seed: int
) -> list[Difference]:
    found = []
    both = zip(_measures(comparison, method), _measures(comparison, baseline), strict=True)
    for ours, theirs in both:
        if ours.place[0] == "capacities" or ours.score is None or theirs.score is None:
            continue
        pairs = paired_scores(folders[method], folders[baseline], ours.units)
        interval = paired_interval(pairs, difference, weights=ours.weights, seed=seed)
        points = ours.score - theirs.score
        found.append(Difference(ours.name, method, baseline, points, interval))
    return found
