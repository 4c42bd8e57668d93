"""Tables of the report as text cells, for the page and for Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longred.report import glossary, names
from longred.report.left_out import score_of
from longred.report.restoration import Point
from longred.report.samples import Unit
from longred.report.scores import Comparison
from longred.report.text_table import NOT_AVAILABLE, Table
from longred.store.artifacts import MANIFEST, read_json

MARKDOWN_NOTE = (
    "Scores in percent. Retention: score of the model / score of the original on the same samples, "
    "with its 95 % interval.{unparsed} Similarity: mean cosine of the last hidden state to the "
    "original's. Nats per token: loss on text held out from {text}. Average: mean over capacities "
    "and RULER at its longest length.{v2}"
)
V2_NOTE = " RULER v2 has an average of its own, of all 12 tasks."
UNPARSED_NOTE = " Unparsed: generated answers in which the metric finds nothing to score."
TRUNCATED_NOTE = "Prompts that lost their beginning, since they are longer than the window:"


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with fixed digits, or n/a."""
    return NOT_AVAILABLE if value is None else f"{value:.{digits}f}"


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """Return a number, followed by its interval if there is one."""
    if value is None or interval is None:
        return number(value)
    return f"{number(value)} [{number(interval[0])}, {number(interval[1])}]"


def score_cell(entry: Mapping[str, Any] | None) -> str:
    """Return a score with its interval, and how many answers or prompts are marked.

    Marked are generated answers that hold nothing to score, and prompts that were truncated.
    """
    entry = entry or {}
    text = with_interval(entry.get("score"), entry.get("interval"))
    marks = [f"{entry[mark]:,} {mark}" for mark in ("unparsed", "truncated") if entry.get(mark)]
    return f"{text} ({', '.join(marks)})" if marks else text


def _unparsed_cell(model: Mapping[str, Any]) -> str:
    """Return how many of a model's generated answers hold nothing to score."""
    count = model["unparsed"]
    return f"{count:,} of {model['generated']:,}" if count else "0"


def _ruler_keys(comparison: Comparison) -> list[tuple[str, str]]:
    """Return where the averages over RULER, then RULER v2, are in a model's values."""
    keys = [("ruler", str(length)) for length in comparison.lengths]
    return keys + [("ruler_v2", str(length)) for length in comparison.v2_lengths]


def _ruler_names(comparison: Comparison) -> list[str]:
    """Return the names of `_ruler_keys`."""
    found = [names.ruler_name(length) for length in comparison.lengths]
    return found + [names.ruler_name(n, names.RULER_V2) for n in comparison.v2_lengths]


def result_table(comparison: Comparison) -> Table:
    """Return the main results, one row per model; scores and retention in percent.

    There is no column of unparsed answers if no answer was generated.
    """
    has_generated = any(model["generated"] for model in comparison.models.values())
    header = [
        names.MODEL,
        *comparison.short_tasks,
        names.SHORT_AVERAGE,
        names.SHORT_RETENTION,
        *_ruler_names(comparison),
        *([names.UNPARSED] if has_generated else []),
        names.AVERAGE,
        names.SIMILARITY,
        names.NATS,
    ]
    rows = [
        [
            name,
            *(number(model["short"][task]) for task in comparison.short_tasks),
            number(model["short"]["average"]),
            with_interval(model["retention"]["short"], model["retention_interval"]["short"]),
            *(number(model[group][key]["average"]) for group, key in _ruler_keys(comparison)),
            *([_unparsed_cell(model)] if has_generated else []),
            number(model["overall"]),
            number(model["similarity"], 4),
            number(model["nats_per_token"], 3),
        ]
        for name, model in comparison.models.items()
    ]
    return Table(header, rows)


def summary_table(comparison: Comparison) -> Table:
    """Return the result table for the page.

    It lacks the columns of single short tasks, and shows the interval of the short average and of
    RULER and RULER v2 at their longest length.
    """
    table = result_table(comparison)
    tasks = set(comparison.short_tasks)
    kept = [i for i, name in enumerate(table.header) if i == 0 or name not in tasks]
    header = [table.header[i] for i in kept]
    rows = [[row[i] for i in kept] for row in table.rows]
    # The last key of each version is that of its longest length.
    columns = zip(_ruler_keys(comparison), _ruler_names(comparison), strict=True)
    longest = {group: (key, name) for (group, key), name in columns}
    for row, model in zip(rows, comparison.models.values(), strict=True):
        ends = model["interval"]
        short = with_interval(model["short"]["average"], ends["short"])
        row[header.index(names.SHORT_AVERAGE)] = short
        for group, (key, name) in longest.items():
            cell = with_interval(model[group][key]["average"], ends[group][key])
            row[header.index(name)] = cell
    return Table(header, rows)


def short_task_table(comparison: Comparison) -> Table:
    """Return the compared short tasks, one per row: what it asks, and each model's score."""
    rows = []
    for capacity, tasks in comparison.capacities.items():
        for task in tasks:
            entries = [score_of(raw, Unit(task)) or {} for raw in comparison.raw.values()]
            chance = next((entry.get("chance") for entry in entries if entry), None)
            scores = map(score_cell, entries)
            rows.append([task, capacity, glossary.task_text(task), number(chance), *scores])
    header = ["short task", "capacity", "what the model must do", "guessing", *comparison.models]
    return Table(header, rows)


def units_table(comparison: Comparison, units: Sequence[Unit]) -> Table:
    """Return number of samples and chance of each unit, and every model's score."""
    dropped = {entry.unit for entry in comparison.dropped}
    rows = []
    for unit in units:
        entries = [score_of(raw, unit) for raw in comparison.raw.values()]
        known: Mapping[str, Any] = next((entry for entry in entries if entry), {})
        row = [comparison.label(unit) + (" (dropped)" if unit in dropped else "")]
        row += [str(known.get("num_samples", NOT_AVAILABLE)), number(known.get("chance"))]
        rows.append([*row, *map(score_cell, entries)])
    return Table(["task", "samples", "chance", *comparison.models], rows)


def retention_table(comparison: Comparison) -> Table:
    """Return retention with its 95 % interval: short, each capacity, RULER and v2 by length."""
    keys = [("capacities", capacity) for capacity in comparison.capacities]
    keys += _ruler_keys(comparison)
    rows = []
    for name, model in comparison.models.items():
        values, intervals = model["retention"], model["retention_interval"]
        cells = [with_interval(values["short"], intervals["short"])]
        cells += [with_interval(values[group][key], intervals[group][key]) for group, key in keys]
        rows.append([name, *cells])
    lengths = _ruler_names(comparison)
    return Table([names.MODEL, names.SHORT_AVERAGE, *comparison.capacities, *lengths], rows)


def difference_table(comparison: Comparison) -> Table:
    """Return the method minus each baseline, in points with its 95 % interval."""
    rows = []
    for entry in comparison.differences:
        ends = NOT_AVAILABLE
        if entry.interval:
            ends = f"[{entry.interval[0]:+.1f}, {entry.interval[1]:+.1f}]"
        label = f"{entry.measure}: {entry.method} minus {entry.baseline}"
        rows.append([label, f"{entry.points:+.1f}", ends])
    return Table(["difference", "points", "95 % interval"], rows)


def points_table(points: Sequence[Point]) -> Table:
    """Return the scores of the saved students, one row per method and step."""
    rows = [
        [
            f"{point.method}, step {point.step}",
            number(point.short_average),
            number(point.ruler),
            with_interval(point.retention, point.interval),
            number(point.similarity, 5),
            number(point.attention_kl, 5),
        ]
        for point in points
    ]
    header = ["student", names.SHORT_AVERAGE, names.RULER, names.SHORT_RETENTION]
    header += [names.SIMILARITY, names.ATTENTION_KL]
    return Table(header, rows)


def series_table(
    first: str, columns: Mapping[str, Mapping[int, float]], digits: int, max_rows: int = 31
) -> Table:
    """Return several series side by side, by step or layer; long ones at evenly spaced rows.

    Args:
        first: name of the first column.
        columns: series name → {step: value}.
        digits: digits after the point.
        max_rows: maximum number of rows; the first and the last step are always included.
    """
    steps = sorted({step for series in columns.values() for step in series})
    if len(steps) > max_rows:
        steps = [steps[i * (len(steps) - 1) // (max_rows - 1)] for i in range(max_rows)]
    rows = [
        [str(step), *(number(series.get(step), digits) for series in columns.values())]
        for step in steps
    ]
    return Table([first, *columns], rows)


def stage_table(stages: Mapping[str, Path]) -> Table:
    """Return the digest of each stage's artifact, and of the model and extension it came from."""
    rows = [[name, _digest(stages["profiling"], name)] for name in ("model", "extension")]
    rows += [[name, _digest(path)] for name, path in stages.items()]
    return Table(["stage", "artifact"], rows)


def model_table(scores: Mapping[str, Path], raw: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the digests of each model's checkpoint, frozen samples and scores."""
    rows = []
    for name, folder in scores.items():
        checkpoint = raw.get(name, {}).get("checkpoint") or _digest(folder, "checkpoint")
        rows.append([name, str(checkpoint), _digest(folder, "samples"), _digest(folder)])
    return Table(["model", "checkpoint", "frozen samples", "scores"], rows)


def _digest(folder: Path, name: str | None = None) -> str:
    """Return the digest of a committed artifact, or of one of its inputs; n/a if unknown."""
    if not (folder / MANIFEST).is_file():
        return NOT_AVAILABLE
    manifest = read_json(folder / MANIFEST)
    if name is not None:
        return str(manifest.get("inputs", {}).get(name, NOT_AVAILABLE))
    return str(manifest.get("digest", NOT_AVAILABLE))


def training_table(trainings: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return steps, tokens, time, speed and blocks per step of each training."""
    digits = {"num_steps": 0, "tokens": 0, "seconds": 1, "tokens_per_second": 0}
    rows = []
    for name, training in trainings.items():
        cells = [
            f"{value:,.{digits[key]}f}" if isinstance(value, int | float) else NOT_AVAILABLE
            for key, value in ((key, training.get(key)) for key in digits)
        ]
        buckets, blocks = training.get("rows"), NOT_AVAILABLE
        if isinstance(buckets, Mapping):
            blocks = ", ".join(f"{bucket} {count}" for bucket, count in buckets.items())
        rows.append([name, *cells, blocks])
    header = ["student", "steps", "tokens", "seconds", "tokens/second", "blocks per step"]
    return Table(header, rows)


def short_average_words(comparison: Comparison) -> str:
    """Return which tasks the short average is a mean of; empty if no short task is compared."""
    if not comparison.capacities:
        return ""
    parts = [f"{name} ({', '.join(tasks)})" for name, tasks in comparison.capacities.items()]
    return (
        "The short average is the mean over capacities of the mean over the tasks of each: "
        f"{'; '.join(parts)}."
    )


def dropped_lines(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what was dropped and why: tasks, capacities without a task left, RULER v2."""
    lines = [(comparison.label(entry.unit), entry.reason) for entry in comparison.dropped]
    reason = "all of its tasks were dropped"
    lines += [(f"capacity {name}", reason) for name in comparison.dropped_capacities]
    for reason in dict.fromkeys(comparison.v2_gaps.values()):
        lengths = [f"{n:,}" for n, found in comparison.v2_gaps.items() if found == reason]
        lines.append((f"{names.RULER_V2} at {' and '.join(lengths)} tokens", reason))
    return lines


def unparsed_lines(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the tasks with answers that hold nothing to score, and how many of each model."""
    units = comparison.short_units(with_dropped=True) + comparison.long_units()
    lines = []
    for unit in units:
        entries = {name: score_of(raw, unit) or {} for name, raw in comparison.raw.items()}
        counts = [
            f"{name} {entry['unparsed']:,} of {entry['num_samples']:,}"
            for name, entry in entries.items()
            if entry.get("unparsed")
        ]
        if counts:
            lines.append((comparison.label(unit), ", ".join(counts)))
    return lines


def truncated_lines(comparison: Comparison) -> list[tuple[str, str]]:
    """Return by capacity the tasks with truncated prompts, and how many of each model.

    Models with the same counts are named together: all see the same prompts and, in an evaluation,
    the same window. Prompts of RULER are never truncated.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name, raw in comparison.raw.items():
        counts: dict[str, list[str]] = {}
        for task, entry in raw.get("short", {}).items():
            if entry.get("truncated"):
                count = f"{task} {entry['truncated']:,} of {entry['num_samples']:,}"
                counts.setdefault(entry["capacity"], []).append(count)
        for capacity, listed in counts.items():
            found.setdefault(capacity, {}).setdefault(", ".join(listed), []).append(name)
    return [
        (capacity, "; ".join(f"{', '.join(models)}: {text}" for text, models in texts.items()))
        for capacity, texts in found.items()
    ]


def skipped_lines(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the short tasks that could not be evaluated, and why."""
    found: dict[str, str] = {}
    for raw in comparison.raw.values():
        for task, entry in raw.get("short", {}).items():
            if entry.get("score") is None and entry.get("reason"):
                reason = " ".join(entry["reason"].split())
                found.setdefault(task, reason.removeprefix(f"{task}: "))
    return list(found.items())


def markdown_page(comparison: Comparison) -> str:
    """Return results, notes, differences, and what was marked or left out, in Markdown."""
    table = result_table(comparison)
    unparsed_note = UNPARSED_NOTE if names.UNPARSED in table.header else ""
    note = MARKDOWN_NOTE.replace("{unparsed}", unparsed_note).replace("{text}", comparison.text)
    note = note.replace("{v2}", V2_NOTE if comparison.v2_lengths else "")
    parts = [f"{table.markdown()}\n{note}\n"]
    if comparison.capacities:
        parts.append(f"{short_average_words(comparison)}\n")
    if unparsed := unparsed_lines(comparison):
        listed = [f"- {label}: {counts}\n" for label, counts in unparsed]
        parts += ["Answers in which the metric finds nothing to score:\n", "".join(listed)]
    if truncated := truncated_lines(comparison):
        listed = [f"- {capacity}: {counts}\n" for capacity, counts in truncated]
        parts += [f"{TRUNCATED_NOTE}\n", "".join(listed)]
    if comparison.differences:
        parts.append(difference_table(comparison).markdown())
    if lines := dropped_lines(comparison):
        dropped = [f"- {label}: {reason}.\n" for label, reason in lines]
        parts += ["Dropped before the comparison:\n", "".join(dropped)]
    if skipped := skipped_lines(comparison):
        listed = [f"- {task}: {reason}\n" for task, reason in skipped]
        parts += ["Not evaluated:\n", "".join(listed)]
    return "\n".join(parts)
