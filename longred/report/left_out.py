"""What counts in no average, and why: tasks barely solved, beside RULER, on packaged questions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longred.config.evaluation import RULER_TASKS, RULER_V2_TASKS
from longred.report.samples import Unit


@dataclass(frozen=True, slots=True)
class Dropped:
    """A task left out of every comparison, and why."""

    unit: Unit
    reason: str


def score_of(raw: Mapping[str, Any], unit: Unit) -> Mapping[str, Any] | None:
    """Return a model's {"score", "interval", "num_samples", "chance", …} for a unit, or None."""
    group: Mapping[str, Any] = raw.get("short", {})
    if unit.length is not None:
        group = raw.get("ruler", {}).get(str(unit.length), {})
    entry = group.get(unit.task)
    return entry if isinstance(entry, Mapping) and entry.get("score") is not None else None


def entries_of(raw: Iterable[Mapping[str, Any]], unit: Unit) -> list[Mapping[str, Any]]:
    """Return what the models with a score for a unit have of it."""
    found = (score_of(model, unit) for model in raw)
    return [entry for entry in found if entry is not None]


def _is_uncounted(entries: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether a task asks packaged questions that are to count in no average."""
    return any(entry.get("builtin") and not entry.get("counts") for entry in entries)


def beside_ruler(raw: Iterable[Mapping[str, Any]], unit: Unit) -> str | None:
    """Return why a unit counts in no RULER average; None if it counts, and for a short task."""
    if unit.length is None:
        return None
    if unit.task not in RULER_TASKS:
        return "it is not one of RULER's tasks and counts in no average"
    if _is_uncounted(entries_of(raw, unit)):
        return (
            "it asks the packaged question set, which is small; name SQuAD or "
            "HotpotQA, or set evaluation.ruler.count_builtin: true"
        )
    return None


def v2_gap(raw: Iterable[Mapping[str, Any]], length: int) -> str | None:
    """Return why RULER v2 has no average at a length; None if it has."""
    models = list(raw)
    entries = {task: entries_of(models, Unit(task, length)) for task in RULER_V2_TASKS}
    missing = [task for task, found in entries.items() if not found]
    uncounted = [task for task, found in entries.items() if _is_uncounted(found)]
    reasons = []
    if missing:
        reasons.append(f"without a score: {', '.join(missing)}")
    if uncounted:
        reasons.append(
            "on the packaged question set, which is small (name HotpotQA, or set "
            f"evaluation.ruler.count_builtin: true): {', '.join(uncounted)}"
        )
    needed = f"its average is of all {len(RULER_V2_TASKS)} tasks; "
    return needed + "; ".join(reasons) if reasons else None


def barely_solved(
    original: Mapping[str, Any], units: Sequence[Unit], original_window: int, minimum: float
) -> list[Dropped]:
    """Return the tasks to drop, and why.

    Args:
        original: the original's scores.json; tasks without a score in it are not judged.
        units: the tasks in question.
        original_window: in tokens; RULER beyond it is judged by the longest length within.
        minimum: percentage points above chance that a task needs.
    """
    dropped = []
    for unit in units:
        judged = unit
        if unit.length is not None and unit.length > original_window:
            same = [other.length for other in units if other.task == unit.task]
            within = [n for n in same if n is not None and n <= original_window]
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
                f"{chance:.1f}; at least {minimum:g} points more are needed"
            )
            dropped.append(Dropped(unit, reason))
    return dropped
