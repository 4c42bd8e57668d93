"""Heat maps of long-context scores: RULER by task and length, needles by depth and length."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from longred.report.intervals import Floats
from longred.report.plots import Plot, draw
from longred.report.samples import Unit, read_answers
from longred.report.scores import BESIDE_RULER, Comparison, score_of
from longred.report.tables import Table, number

NUM_DEPTHS = 5
# Steps of 5 %: a scale of more colours than 50 would be embedded as a picture.
_COLOURS = colormaps["viridis"].resampled(20)


def ruler_heat_map(comparison: Comparison) -> Plot | None:
    """Draw every RULER score, a panel a model: tasks by lengths, dropped ones included."""
    units = [Unit(t, n) for n, tasks in comparison.ruler_tasks.items() for t in tasks]
    units += [entry.unit for entry in comparison.dropped if entry.unit.length is not None]
    if not units:
        return None
    tasks = sorted({unit.task for unit in units})
    lengths = sorted({unit.length for unit in units if unit.length is not None})
    grids = {}
    for name, raw in comparison.raw.items():
        entries = [[score_of(raw, Unit(task, n)) for n in lengths] for task in tasks]
        grids[name] = np.array([[e["score"] if e else np.nan for e in row] for row in entries])
    return _draw(
        "ruler-heat-map",
        "RULER by task and length",
        "Score in percent of every task at every length; an empty field was not asked.",
        grids,
        tasks,
        lengths,
    )


def depth_heat_map(comparison: Comparison, folders: Mapping[str, Path]) -> Plot | None:
    """Draw how often needles are found by where they lie, a panel a model, over all such tasks."""
    units = [Unit(t, n) for n, tasks in comparison.ruler_tasks.items() for t in tasks]
    return _by_depth(
        "depth-heat-map",
        "Needles by depth and length",
        "Score in percent of the compared needle tasks by how much of the text stands before the "
        "needle: 0 % is the start. An empty field has no sample.",
        units,
        folders,
    )


def pairs_heat_map(comparison: Comparison, folders: Mapping[str, Path]) -> Plot | None:
    """Draw how often a value of a long JSON object is found by where it stands."""
    units = [each.unit for each in comparison.dropped if each.unit.task in BESIDE_RULER]
    return _by_depth(
        "pairs-heat-map",
        "Key-value retrieval by depth and length",
        "Score in percent of finding one key's value in a JSON object that fills the length, by "
        "how much of the object stands before it. An empty field has no sample.",
        units,
        folders,
    )


def _by_depth(
    name: str, title: str, caption: str, units: Sequence[Unit], folders: Mapping[str, Path]
) -> Plot | None:
    lengths = sorted({unit.length for unit in units if unit.length is not None})
    grids = {}
    for model, folder in folders.items():
        cells: dict[tuple[int, int], list[float]] = {}
        for unit in units:
            for answer in read_answers(folder, unit).values():
                depth = answer.get("depth")
                if isinstance(depth, int | float):
                    row = min(int(depth * NUM_DEPTHS), NUM_DEPTHS - 1)
                    column = lengths.index(int(unit.length or 0))
                    cells.setdefault((row, column), []).append(float(answer["score"]))
        grid = np.full((NUM_DEPTHS, len(lengths)), np.nan)
        for place, scores in cells.items():
            grid[place] = sum(scores) / len(scores)
        if cells:
            grids[model] = grid
    if not grids:
        return None
    step = 100 // NUM_DEPTHS
    rows = [f"{i * step}-{(i + 1) * step} %" for i in range(NUM_DEPTHS)]
    return _draw(name, title, caption, grids, rows, lengths)


def _draw(
    name: str,
    title: str,
    caption: str,
    grids: Mapping[str, Floats],
    rows: Sequence[str],
    lengths: Sequence[int],
) -> Plot:
    columns = min(len(grids), 4)
    num_lines = -(-len(grids) // columns)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(num_lines, columns, sharex=True, sharey=True, squeeze=False)
        image = None
        for axes, (model, grid) in zip(panels.flat, grids.items(), strict=False):
            # Not imshow: it embeds a picture, which a page that loads nothing does not show.
            image = axes.pcolormesh(grid, vmin=0, vmax=100, cmap=_COLOURS)
            _label(axes, model, grid, rows, lengths)
        for axes in list(panels.flat)[len(grids) :]:
            axes.set_visible(False)
        figure.supxlabel("length (tokens)", fontsize=9)
        if image is not None:
            figure.colorbar(image, ax=list(panels.flat), label="score (%)", shrink=0.9)

    table = Table(
        ["", *(f"{model} {n:,}" for model in grids for n in lengths)],
        [
            [row, *(_cell(value) for grid in grids.values() for value in grid[i])]
            for i, row in enumerate(rows)
        ],
    )
    height = num_lines * (0.9 + 0.28 * len(rows)) + 0.4
    return draw(
        name, title, caption, table, paint, width=max(5.4, 2.4 * columns + 1.6), height=height
    )


def _label(
    axes: Axes, model: str, grid: Floats, rows: Sequence[str], lengths: Sequence[int]
) -> None:
    axes.set_title(model)
    axes.grid(visible=False)
    axes.set_xticks(np.arange(len(lengths)) + 0.5, [f"{n:,}" for n in lengths])
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.set_ylim(len(rows), 0)
    if grid.size > 120:
        return
    for i, j in np.ndindex(*grid.shape):
        value = grid[i, j]
        if np.isfinite(value):
            ink = "white" if value < 60 else "black"
            axes.text(
                j + 0.5, i + 0.5, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=7.5
            )


def _cell(value: float) -> str:
    return number(float(value) if np.isfinite(value) else None)
