"""Drawing primitives shared by all figures: one look per model, lines, bars and legends."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from longred.report.inputs import Series
from longred.report.restoration import Correlation, Point
from longred.report.scores import Comparison
from longred.report.text_table import Table

INK, REFERENCE_INK = "#202124", "#1f1f1f"
# Okabe and Ito's colours, distinguishable with every common colour blindness; the references are
# neutral. Markers, dashes and hatches distinguish the models in grey print as well.
LOOKS: dict[str, tuple[str, str, str, str]] = {
    "original": (REFERENCE_INK, "o", "-", ""),
    "rescaled": ("#9aa0a6", "s", "--", "\\\\\\\\"),
    "cpt": ("#0072b2", "^", "-.", "////"),
    "longred-c": ("#d55e00", "D", "-", ""),
    "longred-u": ("#cc79a7", "v", "-", "||||"),
    "mix-cpt": ("#009e73", "P", ":", "xxxx"),
}
OTHERS = (
    ("#56b4e9", "X", "--", "----"),
    ("#e69f00", "*", "-.", "++++"),
    ("#7b4fa3", "<", ":", "||--"),
    ("#8c510a", ">", "-", "oo"),
    ("#00838f", "p", "--", "\\\\||"),
    ("#d81b60", "h", "-.", ".."),
    ("#5d7a00", "8", ":", "//--"),
    ("#1a237e", "d", "--", "**"),
    ("#b28704", "H", "-.", "xx--"),
    ("#4e342e", "1", ":", "++||"),
    ("#ad1457", "2", "-", "OO"),
    ("#37474f", "3", "--", "////||"),
)
FEW_BARS = 6
"""Plots with fewer bars draw them as narrow as if there were this many."""

Drifts = Mapping[str, Mapping[str, Any]]
"""Model → JSON form of its drift from the original."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureData:
    """Everything that figures are drawn from; a figure whose data is missing is not drawn.

    Attributes:
        comparison: scores of all models.
        folders: model → folder of its evaluation artifact.
        original_window: in tokens.
        method: trained method that the report is about.
        drifts: drift of each evaluated model from the original.
        profiled: one model and the drift that profiling measured for it.
        selection: the distilled layers.
        journals: training method → metrics.
        points: scores of the saved students by training step.
        correlation: correlation of retention with similarity over `points`.
        sweep: sweep.json of `longred drift`.
    """

    comparison: Comparison = field(default_factory=lambda: Comparison({}, {}, []))
    folders: Mapping[str, Path] = field(default_factory=dict)
    original_window: int = 0
    method: str = ""
    drifts: Drifts = field(default_factory=dict)
    profiled: Drifts = field(default_factory=dict)
    selection: Mapping[str, Any] | None = None
    journals: Mapping[str, Series] = field(default_factory=dict)
    points: Sequence[Point] = ()
    correlation: Correlation | None = None
    sweep: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """Result of a figure function: the numbers, and the values that title and caption quote."""

    table: Table
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plot:
    """A finished figure.

    Attributes:
        name: file name without suffix.
        title: heading on the page.
        caption: one or two sentences on what is plotted and how to read it.
        table: the numbers.
        svg: SVG markup.
        png: PNG bytes.
    """

    name: str
    title: str
    caption: str
    table: Table
    svg: str
    png: bytes


def inline_svg(plot: Plot) -> str:
    """Return the SVG as a labelled, scalable HTML element whose ids start with the plot's name."""
    start = plot.svg.index("<svg")
    svg = re.sub(r"<metadata>.*?</metadata>", "", plot.svg[start:], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{plot.name}-", svg)
    svg = re.sub(r'<svg\b([^>]*?) width="[^"]*"', r"<svg\1", svg, count=1)
    svg = re.sub(r'<svg\b([^>]*?) height="[^"]*"', r"<svg\1", svg, count=1)
    names = f'aria-labelledby="{plot.name}-title" aria-describedby="{plot.name}-caption"'
    return svg.replace("<svg", f'<svg role="img" {names}', 1)


def look(model: str, models: Sequence[str]) -> tuple[str, str, str, str]:
    """Return a model's colour, marker, dashes and hatch, the same in every plot of a report."""
    if model in LOOKS:
        return LOOKS[model]
    unknown = [name for name in models if name not in LOOKS]
    return OTHERS[unknown.index(model) % len(OTHERS)]


def line_style(model: str, models: Sequence[str]) -> dict[str, Any]:
    """Return a model's look as arguments of `Axes.plot`."""
    colour, marker, dashes, _ = look(model, models)
    return {"color": colour, "marker": marker, "linestyle": dashes}


def draw_lines(
    axes: Axes,
    series: Mapping[str, Mapping[int, float]],
    models: Sequence[str],
    *,
    markers: bool = False,
) -> None:
    """Draw one line per model over steps, layers or lengths."""
    for model, points in series.items():
        style = line_style(model, models)
        if not markers:
            style["marker"] = ""
        steps, linewidth = sorted(points), 1.7 if len(points) <= 150 else 1.0
        values = [points[step] for step in steps]
        axes.plot(steps, values, linewidth=linewidth, label=model, **style)


def draw_bars(
    axes: Axes,
    groups: Sequence[str],
    values: Mapping[str, Sequence[float | None]],
    intervals: Mapping[str, Sequence[Sequence[float] | None]],
    models: Sequence[str],
) -> None:
    """Draw groups of bars with whiskers, one bar per model; a missing value reads n/a."""
    width = 0.82 / max(1, len(values))
    tallest = max(
        (height for heights in values.values() for height in heights if height), default=1.0
    )
    for position, (model, heights) in enumerate(values.items()):
        colour, _, _, hatch = look(model, models)
        offset = (position - (len(values) - 1) / 2) * width
        places = [index + offset for index in range(len(groups))]
        axes.bar(
            places,
            [height or 0.0 for height in heights],
            width=width * 0.9,
            facecolor=colour,
            edgecolor="white",
            hatch=hatch,
            linewidth=0,
            label=model,
        )
        for place, height, ends in zip(places, heights, intervals[model], strict=True):
            if height is None or height < 0.01 * tallest:
                # Without a label, a bar of no height would look like a missing bar.
                axes.annotate(
                    "n/a" if height is None else f"{height:.1f}",
                    (place, ends[1] if ends else height or 0.0),
                    (0, 4),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    rotation=90,
                    fontsize=7.5,
                    color=INK,
                )
            if height is not None and ends is not None:
                errors = [[max(0.0, height - ends[0])], [max(0.0, ends[1] - height)]]
                # On a white rim, since the bar may be as dark as the whisker.
                for colour, rim in (("white", 1.6), (INK, 0.0)):
                    axes.errorbar(
                        place,
                        height,
                        yerr=errors,
                        color=colour,
                        elinewidth=1 + rim,
                        capsize=2.5 + rim / 2,
                        capthick=1 + rim,
                    )
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(axis="x", visible=False)
    missing = FEW_BARS - len(groups) * len(values)
    if missing > 0:
        # A single bar would otherwise be as wide as the plot.
        margin = missing / 2 * width
        axes.set_xlim(-0.5 - margin, len(groups) - 0.5 + margin)


def write_cell(axes: Axes, row: int, column: int, text: str, *, dark: bool) -> None:
    """Write a number into a cell of a heat map: white on a dark cell, else black."""
    colour = "white" if dark else "black"
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=7.5)


def integer_axis(axes: Axes, label: str, num_ticks: int) -> None:
    """Label the horizontal axis and mark whole numbers only."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=num_ticks))


def legend_above(figure: Figure, axes: Axes, first: Sequence[str] = ()) -> None:
    """Put one legend above all panels; the names in `first` lead."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: (labels[i] not in first, i))
    if order:
        figure.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="outside upper left",
            ncols=len(order) if len(order) <= 7 else 5,
            handlelength=2.2,
        )
