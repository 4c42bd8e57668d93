"""Tables of a comparison, as plain text cells that the page and Markdown both print."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longred.report.samples import Unit
from longred.report.scores import Comparison, score_of

NOT_AVAILABLE = "n/a"


@dataclass(frozen=True, slots=True)
class Table:
    """A header and rows of text; the first column names the row, the others are numbers."""

    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        return "".join("| " + " | ".join(_escape(cell) for cell in line) + " |\n" for line in lines)


def _escape(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with fixed digits, or n/a."""
    return NOT_AVAILABLE if value is None else f"{value:.{digits}f}"


def with_interval(value: float | None, interval: Sequence[float] | None, digits: int = 1) -> str:
    """Return a number followed by its interval where there is one."""
    text = number(value, digits)
    if value is None or interval is None:
        return text
    return f"{text} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def result_table(comparison: Comparison) -> Table:
    """Return the table that a study prints: one row a model; scores and retention in percent."""
    header = [
        "model",
        *comparison.short_tasks,
        "short average",
        "short retention",
        *(f"RULER {length:,}" for length in comparison.lengths),
        "average",
        "similarity",
        "nats/token",
    ]
    rows = []
    for name, model in comparison.models.items():
        interval = model["retention_interval"]["short"]
        rows.append(
            [
                name,
                *(number(model["short"][task]) for task in comparison.short_tasks),
                number(model["short"]["average"]),
                with_interval(model["retention"]["short"], interval),
                *(number(model["ruler"][str(length)]["average"]) for length in comparison.lengths),
                number(model["overall"]),
                number(model["similarity"], 4),
                number(model["nats_per_token"], 3),
            ]
        )
    return Table(header, rows)


def short_table(comparison: Comparison) -> Table:
    """Return each short task's score and standard error, dropped tasks included."""
    units = [Unit(task) for task in comparison.short_tasks]
    units += [entry.unit for entry in comparison.dropped if entry.unit.length is None]
    return _units_table(comparison, units)


def ruler_table(comparison: Comparison) -> Table:
    """Return each RULER task's score, standard error and number of samples at each length."""
    units = [
        Unit(task, length) for length, tasks in comparison.ruler_tasks.items() for task in tasks
    ]
    units += [entry.unit for entry in comparison.dropped if entry.unit.length is not None]
    return _units_table(comparison, units)


def _units_table(comparison: Comparison, units: Sequence[Unit]) -> Table:
    left_out = {entry.unit for entry in comparison.dropped}
    rows = []
    for unit in units:
        entries = {name: score_of(raw, unit) for name, raw in comparison.raw.items()}
        known: Any = next((entry for entry in entries.values() if entry), {})
        label = unit.label() + (" (dropped)" if unit in left_out else "")
        cells = [_score_cell(entry) for entry in entries.values()]
        rows.append(
            [
                label,
                str(known.get("num_samples", NOT_AVAILABLE)),
                number(known.get("chance")),
                *cells,
            ]
        )
    return Table(["task", "samples", "chance", *comparison.models], rows)


def _score_cell(entry: Any) -> str:
    if entry is None:
        return NOT_AVAILABLE
    error = entry.get("stderr")
    return number(entry["score"]) + (f" ± {error:.1f}" if error is not None else "")


def retention_table(comparison: Comparison) -> Table:
    """Return retention with its 95 % interval, in percent of the original.

    Columns: the short average, each capacity in it, RULER by length.
    """
    rows = []
    for name, model in comparison.models.items():
        values, intervals = model["retention"], model["retention_interval"]
        cells = [with_interval(values["short"], intervals["short"])]
        for capacity in comparison.capacities:
            kept, interval = values["capacities"][capacity], intervals["capacities"][capacity]
            cells.append(with_interval(kept, interval))
        for length in comparison.lengths:
            key = str(length)
            cells.append(with_interval(values["ruler"][key], intervals["ruler"][key]))
        rows.append([name, *cells])
    lengths = [f"RULER {length:,}" for length in comparison.lengths]
    return Table(["model", "short average", *comparison.capacities, *lengths], rows)


def difference_table(comparison: Comparison) -> Table:
    """Return the method minus each baseline, in points with its 95 % interval."""
    rows = [
        [
            f"{entry.measure}: {entry.method} minus {entry.baseline}",
            f"{entry.points:+.1f}",
            f"[{entry.interval[0]:+.1f}, {entry.interval[1]:+.1f}]"
            if entry.interval
            else NOT_AVAILABLE,
        ]
        for entry in comparison.differences
    ]
    return Table(["difference", "points", "95 % interval"], rows)


def series_table(
    first: str, columns: dict[str, dict[int, float]], digits: int, max_rows: int = 31
) -> Table:
    """Return several series beside each other, by step or layer; long ones at evenly spaced rows.

    Args:
        first: name of the first column.
        columns: series name → {step: value}.
        digits: digits after the point.
        max_rows: rows at most; the first and the last are always there.
    """
    steps = sorted({step for series in columns.values() for step in series})
    if len(steps) > max_rows:
        steps = [steps[i * (len(steps) - 1) // (max_rows - 1)] for i in range(max_rows)]
    rows = [
        [str(step), *(number(series.get(step), digits) for series in columns.values())]
        for step in steps
    ]
    return Table([first, *columns], rows)


def short_average_words(comparison: Comparison) -> str:
    """Say what the short average is a mean of; nothing where no short task is compared."""
    if not comparison.capacities:
        return ""
    parts = [f"{name} ({', '.join(tasks)})" for name, tasks in comparison.capacities.items()]
    return (
        "The short average is the mean over capacities of the mean over the tasks of each: "
        + "; ".join(parts)
        + "."
    )


def dropped_lines(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what was dropped and why: every task, then the capacities that have none left."""
    lines = [(entry.unit.label(), entry.reason) for entry in comparison.dropped]
    lines += [
        (f"capacity {name}", "all of its tasks were dropped")
        for name in comparison.dropped_capacities
    ]
    return lines


def markdown_page(comparison: Comparison) -> str:
    """Return the result table and what was dropped, in Markdown."""
    text = result_table(comparison).markdown()
    text += (
        "\nScores in percent. Retention: score of the model / score of the original on the same "
        "samples, with "
        "the 95 % interval of a paired bootstrap. Similarity: mean cosine of the last hidden "
        "state to the "
        "original's. Nats per token: loss on held-out text. Average: mean over capacities and "
        "RULER at its longest length.\n"
    )
    if comparison.capacities:
        text += f"\n{short_average_words(comparison)}\n"
    if comparison.differences:
        text += "\n" + difference_table(comparison).markdown()
    if comparison.dropped:
        text += "\nDropped before comparing:\n\n"
        text += "".join(f"- {label}: {reason}.\n" for label, reason in dropped_lines(comparison))
    return text
