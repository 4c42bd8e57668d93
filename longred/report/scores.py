"""Compares the scores of several models: dropped tasks, averages, retention, differences."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longred.config.evaluation import RULER_V2_TASKS
from longred.errors import MismatchError
from longred.report import names
from longred.report.left_out import (
    Dropped,
    barely_solved,
    beside_ruler,
    entries_of,
    score_of,
    v2_gap,
)
from longred.report.measures import Difference, differences, retention, score_intervals
from longred.report.names import ORIGINAL
from longred.report.samples import DrawReader, Unit
from longred.store.artifacts import read_json


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several models under one evaluation.

    Attributes:
        models: name → {"short": {task: score, "average"}, "capacities": {capacity: score},
            "ruler": {length: {task: score, "average"}}, "ruler_v2": the same of RULER v2, at the
            lengths where it has an average, "retention": {"short", "capacities": {capacity},
            "ruler": {length}, "ruler_v2": {length}}, "overall": the mean over capacities and the
            RULER average at the longest length, as in the paper, "interval": the [low, high] of the
            averages, arranged like "retention", "retention_interval", "unparsed": generated
            answers that held nothing to score, and "generated": how many there are, over all
            tasks, "similarity", "similarity_per_layer", "attention_kl",
            "nats_per_token", "bits_per_byte", "dropped", "dropped_capacities"}. Scores and
            retention are in percent, None if unknown. The short average is the mean over
            capacities of the mean over the tasks of each.
        raw: name → the model's scores.json, with dropped tasks, intervals and chance.
        dropped: tasks left out of all averages.
        dropped_capacities: capacities with no task left.
        differences: the method against each baseline.
        capacities: capacity → its compared short tasks.
        ruler_tasks: length in tokens → its compared RULER tasks; lengths ascend.
        v2_tasks: length in tokens → its evaluated tasks of RULER v2; lengths ascend.
        v2_gaps: length in tokens → why RULER v2 has no average there.
        text: what the text of the measured loss was held out from.
    """

    models: dict[str, dict[str, Any]]
    raw: dict[str, dict[str, Any]]
    dropped: list[Dropped]
    dropped_capacities: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    capacities: dict[str, list[str]] = field(default_factory=dict)
    ruler_tasks: dict[int, list[str]] = field(default_factory=dict)
    v2_tasks: dict[int, list[str]] = field(default_factory=dict)
    v2_gaps: dict[int, str] = field(default_factory=dict)
    text: str = names.RUN_TEXT

    @property
    def short_tasks(self) -> list[str]:
        """The compared short tasks, capacity by capacity."""
        return [task for tasks in self.capacities.values() for task in tasks]

    @property
    def short_weights(self) -> list[float]:
        """The weight of each of `short_tasks` in the short average; they sum to 1."""
        return [
            1 / (len(self.capacities) * len(tasks))
            for tasks in self.capacities.values()
            for _ in tasks
        ]

    @property
    def lengths(self) -> list[int]:
        """The evaluated RULER lengths in tokens, ascending."""
        return list(self.ruler_tasks)

    @property
    def v2_lengths(self) -> list[int]:
        """The lengths in tokens at which RULER v2 has an average, ascending."""
        return [length for length in self.v2_tasks if length not in self.v2_gaps]

    def short_units(self, *, with_dropped: bool = False) -> list[Unit]:
        """Return the compared short tasks, then optionally the dropped ones."""
        dropped = [each.unit for each in self.dropped if with_dropped and each.unit.length is None]
        return [Unit(task) for task in self.short_tasks] + dropped

    def ruler_units(self) -> list[Unit]:
        """Return the compared RULER tasks, length by length."""
        return [Unit(task, n) for n, tasks in self.ruler_tasks.items() for task in tasks]

    def v2_units(self) -> list[Unit]:
        """Return the evaluated tasks of RULER v2, length by length."""
        return [Unit(task, n) for n, tasks in self.v2_tasks.items() for task in tasks]

    def long_units(self) -> list[Unit]:
        """Return the compared RULER tasks, those of RULER v2, and the dropped ones."""
        dropped = [each.unit for each in self.dropped if each.unit.length]
        return self.ruler_units() + self.v2_units() + dropped

    def mark(self, unit: Unit) -> str:
        """Return the mark behind the name of a RULER task that asks packaged questions, or ""."""
        entries = entries_of(self.raw.values(), unit)
        return names.BUILT_IN if any(entry.get("builtin") for entry in entries) else ""

    def label(self, unit: Unit) -> str:
        """Return the name of a unit for readers, with its mark."""
        return unit.label(self.mark(unit))

    @property
    def drifts(self) -> dict[str, Any]:
        """The evaluated drift from the original of every other model."""
        found = {name: (raw.get("similarity") or {}).get("drift") for name, raw in self.raw.items()}
        return {name: drift for name, drift in found.items() if drift and name != ORIGINAL}


def collect(
    folders: Mapping[str, Path],
    *,
    original_window: int,
    min_points_above_chance: float = 0.0,
    dropped: Sequence[Dropped] | None = None,
    method: str | None = None,
    baselines: Sequence[str] = (),
) -> Comparison:
    """Compare models, in the order of `folders`.

    A task that the original solves less than `min_points_above_chance` above chance is dropped for
    all models, because a ratio to almost nothing means nothing. A RULER task is judged at each
    length up to `original_window`; beyond it, where the original cannot be expected to work, at the
    longest length within. An average exists only if every compared task has a score. Retention is
    the ratio of averages and exists for short tasks and for RULER lengths up to `original_window`.
    RULER v2 has an average of its own, of all its tasks: none of them is dropped.

    Args:
        folders: model → evaluation folder with scores.json and samples/.
        original_window: in tokens.
        min_points_above_chance: in percentage points.
        dropped: drop exactly these tasks, whatever the original scores.
        method: trained method that `differences` compares with each of `baselines`.
        baselines: names of models.

    Raises:
        MismatchError: a folder lacks its scores, a short task does not name its capacity, or two
            models answered different samples.
    """
    raw = {name: read_json(folder / "scores.json") for name, folder in folders.items()}
    evaluated = units_of(raw.values())
    units = [unit for unit in evaluated if unit.task not in RULER_V2_TASKS]
    v2_tasks = _v2_tasks(evaluated)
    gaps = {length: v2_gap(raw.values(), length) for length in v2_tasks}
    if dropped is None:
        original = raw.get(ORIGINAL, {})
        dropped = barely_solved(original, units, original_window, min_points_above_chance)
    left_out = {entry.unit: entry for entry in dropped}
    for unit in units:
        if reason := beside_ruler(raw.values(), unit):
            left_out.setdefault(unit, Dropped(unit, reason))
    capacity_of = _capacities(folders, raw)
    capacities: dict[str, list[str]] = {capacity: [] for capacity in capacity_of.values()}
    lengths = sorted({unit.length for unit in units if unit.length is not None})
    ruler_tasks: dict[int, list[str]] = {length: [] for length in lengths}
    for unit in units:
        if unit in left_out:
            continue
        if unit.length is None:
            capacities[capacity_of[unit.task]].append(unit.task)
        else:
            ruler_tasks[unit.length].append(unit.task)
    comparison = Comparison(
        {},
        raw,
        list(left_out.values()),
        dropped_capacities=[name for name, tasks in capacities.items() if not tasks],
        capacities={name: tasks for name, tasks in capacities.items() if tasks},
        ruler_tasks=ruler_tasks,
        v2_tasks=v2_tasks,
        v2_gaps={length: reason for length, reason in gaps.items() if reason},
    )
    for name in folders:
        comparison.models[name] = _averages(comparison, name)
    reader = DrawReader()
    for name in folders:
        comparison.models[name].update(
            score_intervals(comparison, reader, folders[name], name)
            | retention(comparison, reader, folders, name, original_window)
        )
    for baseline in baselines:
        if method is None or baseline == method:
            continue
        if {method, baseline} <= folders.keys():
            comparison.differences.extend(
                differences(comparison, reader, folders, method, baseline)
            )
    return comparison


def average(values: Iterable[float | None]) -> float | None:
    """Return the mean, or None if there is no value or one is missing."""
    numbers = list(values)
    present = [number for number in numbers if number is not None]
    return sum(present) / len(present) if present and len(present) == len(numbers) else None


def units_of(raw: Iterable[Mapping[str, Any]]) -> list[Unit]:
    """Return every unit on which some model was evaluated, each once, short tasks first."""
    models = list(raw)
    units = [Unit(task) for model in models for task in model.get("short", {})]
    for model in models:
        for length in sorted(model.get("ruler", {}), key=int):
            units += [Unit(task, int(length)) for task in model["ruler"][length]]
    return list(dict.fromkeys(units))


def _capacities(
    folders: Mapping[str, Path], raw: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Return the capacity of every short task; the models must agree."""
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


def _v2_tasks(units: Sequence[Unit]) -> dict[int, list[str]]:
    """Return the evaluated tasks of RULER v2 by length, in its own order."""
    asked = {unit for unit in units if unit.task in RULER_V2_TASKS}
    lengths = sorted({unit.length for unit in asked if unit.length is not None})
    return {n: [task for task in RULER_V2_TASKS if Unit(task, n) in asked] for n in lengths}


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
    # As in the paper: each capacity and RULER at its longest length count once.
    longest = ruler[str(max(comparison.lengths))]["average"] if ruler else None
    similarity = _similarity(comparison, name)
    dropped = [
        {
            "task": entry.unit.task,
            "length": entry.unit.length,
            "score": (score_of(raw, entry.unit) or {}).get("score"),
            "reason": entry.reason,
        }
        for entry in comparison.dropped
    ]
    return {
        "short": {**short, "average": average(capacities.values())},
        "capacities": capacities,
        "ruler": ruler,
        "ruler_v2": {str(n): scored(RULER_V2_TASKS, n) for n in comparison.v2_lengths},
        "overall": average([*capacities.values(), longest]) if capacities else None,
        "similarity": similarity.get("last"),
        "similarity_per_layer": similarity.get("per_layer"),
        "attention_kl": similarity.get("attention_kl"),
        "nats_per_token": raw.get("nats_per_token"),
        "bits_per_byte": raw.get("bits_per_byte"),
        "dropped": dropped,
        "dropped_capacities": comparison.dropped_capacities,
        **_num_unparsed(raw),
    }


def _similarity(comparison: Comparison, name: str) -> Mapping[str, Any]:
    """Return a model's similarity to the original; that of the original for the same weights.

    A model that is evaluated as its own original has measured none.
    """
    raw, original = comparison.raw[name], comparison.raw.get(ORIGINAL, {})
    is_same = raw.get("checkpoint") is not None and raw["checkpoint"] == original.get("checkpoint")
    return raw.get("similarity") or (original.get("similarity") if is_same else None) or {}


def _num_unparsed(raw: Mapping[str, Any]) -> dict[str, int]:
    """Count a model's generated answers, and those that held nothing to score."""
    entries = [score_of(raw, unit) or {} for unit in units_of([raw])]
    generated = [entry for entry in entries if "unparsed" in entry]
    return {
        "unparsed": sum(int(entry["unparsed"]) for entry in generated),
        "generated": sum(int(entry["num_samples"]) for entry in generated),
    }


def model_metrics(comparison: Comparison, name: str) -> dict[int, dict[str, float]]:
    """Return a model's journal values by step: RULER at step = length, all else at step 0.

    Keys: `short/<task>`, `capacity/<capacity>` and `capacity/short` (the mean over capacities),
    `retention/<capacity>`, `retention/short`, `similarity/last`, `similarity/attention_kl`,
    `ruler/<task>`, `ruler/average`, `retention/ruler`, `ruler_v2/average`, `retention/ruler_v2`,
    `held_out/nats_per_token`, `held_out/bits_per_byte`; unknown values are left out.
    """
    model = comparison.models[name]
    retention = model["retention"]
    values: dict[int, dict[str, float | None]] = {
        0: {
            "capacity/short": model["short"]["average"],
            "retention/short": retention["short"],
            "similarity/last": model["similarity"],
            "similarity/attention_kl": model["attention_kl"],
            "held_out/nats_per_token": model["nats_per_token"],
            "held_out/bits_per_byte": model["bits_per_byte"],
            **{f"short/{task}": model["short"][task] for task in comparison.short_tasks},
            **{f"capacity/{key}": score for key, score in model["capacities"].items()},
            **{f"retention/{key}": value for key, value in retention["capacities"].items()},
        }
    }
    for length, tasks in comparison.ruler_tasks.items():
        scores = model["ruler"][str(length)]
        values[length] = {
            "ruler/average": scores["average"],
            "retention/ruler": retention["ruler"][str(length)],
            **{f"ruler/{task}": scores[task] for task in tasks},
        }
    for length in comparison.v2_lengths:
        values.setdefault(length, {}).update(
            {
                "ruler_v2/average": model["ruler_v2"][str(length)]["average"],
                "retention/ruler_v2": retention["ruler_v2"][str(length)],
            }
        )
    for unit in comparison.v2_units():
        entry = score_of(comparison.raw[name], unit) or {}
        values.setdefault(unit.length or 0, {})[f"ruler/{unit.task}"] = entry.get("score")
    return {
        step: {key: value for key, value in found.items() if value is not None}
        for step, found in values.items()
    }
