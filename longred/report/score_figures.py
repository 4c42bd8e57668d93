"""Figures of evaluation scores: retention, short tasks, RULER, retrieval by depth, perplexity."""

import math
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator

from longred.evaluation.intervals import Floats
from longred.report.left_out import score_of
from longred.report.names import ORIGINAL, RULER, RULER_V2, ruler_name
from longred.report.plots import (
    INK,
    Drawn,
    FigureData,
    draw_bars,
    draw_lines,
    legend_above,
    line_style,
    write_cell,
)
from longred.report.samples import Unit, read_answers
from longred.report.scores import Comparison
from longred.report.tables import number, retention_table, series_table, units_table
from longred.report.text_table import Table

WINDOW_INK = "#5f6368"
NUM_DEPTHS = 5
TASKS_IN_A_LINE = 6
MAX_TICK_CHARACTERS = 18
"""Longer labels of one map's lengths are turned, so that they do not overlap."""
# Steps of 5 %: matplotlib embeds the colour bar as a bitmap if the scale has more than 50 colours.
_COLOURS = colormaps["viridis"].resampled(20)


def retention(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw retention with its interval, and the original as a line at 100 %."""
    comparison = data.comparison
    models = {name: model for name, model in comparison.models.items() if name != ORIGINAL}
    groups = ["short tasks", *map(ruler_name, comparison.lengths)]
    groups += [ruler_name(length, RULER_V2) for length in comparison.v2_lengths]
    values, intervals = (
        {
            name: [m[key]["short"], *m[key]["ruler"].values(), *m[key]["ruler_v2"].values()]
            for name, m in models.items()
        }
        for key in ("retention", "retention_interval")
    )
    known = [
        any(value is not None for value in group) for group in zip(*values.values(), strict=True)
    ]
    if not any(known):
        return None
    axes = figure.subplots()
    draw_bars(
        axes,
        list(compress(groups, known)),
        {name: list(compress(found, known)) for name, found in values.items()},
        {name: list(compress(found, known)) for name, found in intervals.items()},
        list(comparison.models),
    )
    axes.axhline(100, color=INK, linewidth=1, label="original (100 %)")
    axes.set_ylabel("retention (% of the original)")
    legend_above(figure, axes, list(models))
    return Drawn(retention_table(comparison))


def short_tasks(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw the score of each short task, one bar per model, with the chance level."""
    comparison, tasks = data.comparison, data.comparison.short_tasks
    if not tasks:
        return None
    num_lines = -(-len(tasks) // TASKS_IN_A_LINE)
    in_a_line = -(-len(tasks) // num_lines)
    figure.set_size_inches(max(7.2, 1.6 * in_a_line), 0.9 + 2.4 * num_lines)
    entries = {
        name: [score_of(raw, Unit(task)) or {} for task in tasks]
        for name, raw in comparison.raw.items()
    }
    values = {name: [entry.get("score") for entry in found] for name, found in entries.items()}
    intervals = {name: [entry.get("interval") for entry in e] for name, e in entries.items()}
    panels = figure.subplots(num_lines, 1, squeeze=False)[:, 0]
    for line, axes in enumerate(panels):
        part = slice(line * in_a_line, (line + 1) * in_a_line)
        labels = [task.replace("_", " ") for task in tasks[part]]
        shown = {name: found[part] for name, found in values.items()}
        ends = {name: found[part] for name, found in intervals.items()}
        draw_bars(axes, labels, shown, ends, list(comparison.models))
        chances = [_chance(comparison, Unit(task)) for task in tasks[part]]
        levels = {place: chance for place, chance in enumerate(chances) if chance is not None}
        starts, ends_of = [place - 0.46 for place in levels], [place + 0.46 for place in levels]
        style: dict[str, Any] = {"color": INK, "linestyle": (0, (1, 1)), "label": "chance"}
        axes.hlines(list(levels.values()), starts, ends_of, **style)
        # All lines are as long as the first, so that bars have one width.
        axes.set_xlim(right=max(axes.get_xlim()[1], in_a_line - 0.5))
        axes.set_ylabel("score (%)")
        axes.set_ylim(0, 104)
    legend_above(figure, panels[0], list(comparison.models))
    return Drawn(units_table(comparison, comparison.short_units(with_dropped=True)))


def _chance(comparison: Comparison, unit: Unit) -> float | None:
    """Return the score of guessing, in percent; None if no model has a score."""
    entries = (score_of(raw, unit) for raw in comparison.raw.values())
    return next((float(entry.get("chance") or 0.0) for entry in entries if entry), None)


def ruler(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw each model's average over the compared RULER tasks by length."""
    comparison = data.comparison
    lengths = [length for length, tasks in comparison.ruler_tasks.items() if tasks]
    if not lengths:
        return None
    _by_length(figure, data, "ruler", RULER, lengths)
    names = sorted({task for tasks in comparison.ruler_tasks.values() for task in tasks})
    table = units_table(comparison, comparison.long_units())
    return Drawn(table, {"tasks": ", ".join(names), "window": data.original_window})


def ruler_v2(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw each model's average over the tasks of RULER v2 by length."""
    comparison = data.comparison
    if not comparison.v2_lengths:
        return None
    _by_length(figure, data, "ruler_v2", RULER_V2, comparison.v2_lengths)
    table = units_table(comparison, comparison.v2_units())
    return Drawn(table, {"window": data.original_window})


def _by_length(
    figure: Figure, data: FigureData, group: str, version: str, lengths: Sequence[int]
) -> None:
    """Draw the averages of one version of RULER, and the original window."""
    axes, window = figure.subplots(), data.original_window
    axes.set_xscale("log", base=2)
    _draw_averages(axes, data.comparison, group, lengths)
    if min(lengths) <= window < max(lengths):
        axes.axvline(window, color=WINDOW_INK, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
        above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center"}
        axes.text(window, 1.01, "original window", color=WINDOW_INK, fontsize=8, **above)
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("length (tokens, logarithmic)")
    axes.set_ylabel(f"{version} average (%)")
    axes.set_ylim(0, 104)
    legend_above(figure, axes)


def _draw_averages(axes: Axes, comparison: Comparison, group: str, lengths: Sequence[int]) -> None:
    """Draw one line per model; whiskers are the interval of the average over tasks."""
    models = list(comparison.models)
    for position, (name, model) in enumerate(comparison.models.items()):
        averages = {n: model[group][str(n)]["average"] for n in lengths}
        known = [n for n in lengths if averages[n] is not None]
        if not known:
            continue
        intervals = model["interval"][group]
        ends = [intervals[str(n)] or (averages[n], averages[n]) for n in known]
        errors = [
            [averages[n] - low for n, (low, _) in zip(known, ends, strict=True)],
            [high - averages[n] for n, (_, high) in zip(known, ends, strict=True)],
        ]
        # Models are shifted a little, so that equal scores and whiskers stay visible.
        shift = 2 ** (0.035 * (position - (len(models) - 1) / 2))
        axes.errorbar(
            [n * shift for n in known],
            [averages[n] for n in known],
            yerr=errors,
            elinewidth=1,
            capsize=2,
            label=name,
            **line_style(name, models),
        )


def perplexity(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw each model's perplexity on the longest held-out text, by position."""
    raw = {name: scores.get("perplexity") or {} for name, scores in data.comparison.raw.items()}
    lengths = {int(length) for measured in raw.values() for length in measured}
    if not lengths:
        return None
    longest = str(max(lengths))
    found = {name: measured[longest] for name, measured in raw.items() if longest in measured}
    series = {
        name: {int(each["end"]): math.exp(each["nats"]) for each in measured["bins"]}
        for name, measured in found.items()
    }
    axes = figure.subplots()
    draw_lines(axes, series, list(raw), markers=True)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    # Powers of ten are far apart, so the ticks between them get numbers where there is room.
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axes.set_ylabel("perplexity")
    axes.set_xlabel("position in the text (tokens)")
    axes.set_xlim(left=0)
    legend_above(figure, axes)
    whole = ", ".join(f"{name} {each['perplexity']:.2f}" for name, each in found.items())
    summary = f"Whole text: {whole}."
    keyed = {name: each for name, each in found.items() if each.get("long_ppl") is not None}
    if keyed:
        num_keys = next(iter(keyed.values()))["num_key_tokens"]
        long_ppl = ", ".join(f"{name} {each['long_ppl']:.2f}" for name, each in keyed.items())
        summary += f" LongPPL, on the {num_keys:,} tokens that depend on distant text: {long_ppl}."
    values = {"length": int(longest), "summary": summary}
    return Drawn(series_table("position", series, 3), values)


def ruler_heat_map(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw every RULER score, dropped tasks included: one panel per model, tasks by lengths."""
    comparison = data.comparison
    units = comparison.long_units()
    if not units:
        return None
    tasks = sorted({unit.task for unit in units})
    labels = {unit.task: unit.task + comparison.mark(unit) for unit in units}
    lengths = sorted({int(unit.length or 0) for unit in units})
    grids = {}
    for name, raw in comparison.raw.items():
        entries = [[score_of(raw, Unit(task, n)) for n in lengths] for task in tasks]
        grids[name] = np.array([[e["score"] if e else np.nan for e in row] for row in entries])
    return _heat_map(figure, grids, [labels[task] for task in tasks], lengths)


def depth_heat_map(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw the score of all compared needle tasks by the needle's depth and the length."""
    return _depth_map(figure, data, data.comparison.ruler_units())


def pairs_heat_map(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw the score of key-value retrieval by the pair's depth and the length."""
    dropped = [each.unit for each in data.comparison.dropped]
    return _depth_map(figure, data, [unit for unit in dropped if unit.task == "kv_retrieval"])


def _depth_map(figure: Figure, data: FigureData, units: Sequence[Unit]) -> Drawn | None:
    lengths = sorted({unit.length for unit in units if unit.length is not None})
    grids = {}
    for model, folder in data.folders.items():
        cells: dict[tuple[int, int], list[float]] = {}
        for unit in units:
            for answer in read_answers(folder, unit).values():
                depth = answer.get("depth")
                if isinstance(depth, int | float):
                    row = min(int(depth * NUM_DEPTHS), NUM_DEPTHS - 1)
                    column = lengths.index(int(unit.length or 0))
                    cells.setdefault((row, column), []).append(float(answer["score"]))
        grid = np.full((NUM_DEPTHS, len(lengths)), np.nan)
        for cell, scores in cells.items():
            grid[cell] = sum(scores) / len(scores)
        if cells:
            grids[model] = grid
    if not grids:
        return None
    step = 100 // NUM_DEPTHS
    rows = [f"{i * step}-{(i + 1) * step} %" for i in range(NUM_DEPTHS)]
    return _heat_map(figure, grids, rows, lengths)


def _heat_map(
    figure: Figure, grids: Mapping[str, Floats], rows: Sequence[str], lengths: Sequence[int]
) -> Drawn:
    """Draw one map per model, four in a line: `rows` down, lengths across."""
    columns = min(len(grids), 4)
    num_lines = -(-len(grids) // columns)
    height = num_lines * (0.9 + 0.28 * len(rows)) + 0.4
    figure.set_size_inches(max(5.4, 2.4 * columns + 1.6), height)
    panels = figure.subplots(num_lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (model, grid) in zip(panels.flat, grids.items(), strict=False):
        # Not imshow: it embeds a bitmap, which the page's security policy blocks.
        image = axes.pcolormesh(grid, vmin=0, vmax=100, cmap=_COLOURS)
        axes.set_title(model)
        axes.grid(visible=False)
        labels = [f"{n:,}" for n in lengths]
        axes.set_xticks(np.arange(len(lengths)) + 0.5, labels)
        if sum(map(len, labels)) > MAX_TICK_CHARACTERS:
            axes.tick_params(axis="x", labelrotation=90)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.set_ylim(len(rows), 0)
        for (i, j), value in np.ndenumerate(grid):
            if grid.size <= 120 and np.isfinite(value):
                write_cell(axes, i, j, f"{value:.0f}", dark=bool(value < 60))
    for axes in list(panels.flat)[len(grids) :]:
        axes.set_visible(False)
    figure.supxlabel("length (tokens)", fontsize=9)
    figure.colorbar(image, ax=list(panels.flat), label="score (%)", shrink=0.9)
    header = ["", *(f"{model} {n:,}" for model in grids for n in lengths)]
    joined = np.concatenate(list(grids.values()), axis=1).tolist()
    table = [
        [row, *(number(value if math.isfinite(value) else None) for value in values)]
        for row, values in zip(rows, joined, strict=True)
    ]
    return Drawn(Table(header, table))
