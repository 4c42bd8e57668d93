"""How a report draws: one look for each model, and the same bytes for the same numbers."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from longred.report.tables import Table

STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#5f6368",
    "axes.labelcolor": "#202124",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": "#e3e5e8",
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 5,
    "hatch.linewidth": 0.6,
    "xtick.color": "#3c4043",
    "ytick.color": "#3c4043",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "svg.fonttype": "path",
    "savefig.dpi": 150,
}

# Okabe and Ito's colours, told apart with every common colour blindness; the references are
# neutral, and markers, dashes and hatches tell the models apart once more in grey print.
INK = "#202124"
FEW_BARS = 6
"""With fewer, bars stay as narrow as of so many."""
LOOKS: dict[str, tuple[str, str, str, str]] = {
    "original": ("#1f1f1f", "o", "-", ""),
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
)


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawn plot and what a reader needs beside it.

    Attributes:
        name: file name without its ending.
        title: heading on the page.
        caption: what is shown and how to read it, in a sentence or two.
        table: the numbers.
        svg: the drawing as SVG markup.
        png: the drawing as PNG bytes.
    """

    name: str
    title: str
    caption: str
    table: Table
    svg: str
    png: bytes


def look(model: str, models: Sequence[str]) -> tuple[str, str, str, str]:
    """Return a model's colour, marker, dashes and hatch, the same in every plot of a report."""
    if model in LOOKS:
        return LOOKS[model]
    unknown = [name for name in models if name not in LOOKS]
    return OTHERS[unknown.index(model) % len(OTHERS)]


def draw(
    name: str,
    title: str,
    caption: str,
    table: Table,
    paint: Callable[[Figure], None],
    *,
    width: float = 7.2,
    height: float = 3.3,
) -> Plot:
    """Draw one plot to SVG and PNG, with nothing in either that changes from call to call.

    Args:
        name: file name without its ending.
        title: heading on the page.
        caption: what is shown.
        table: the numbers.
        paint: fills an empty figure.
        width: in inches.
        height: in inches.
    """
    style: Any = {**STYLE, "svg.hashsalt": f"longred-{name}"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        svg, png = io.BytesIO(), io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", metadata=nothing)
        figure.savefig(png, format="png", metadata={"Software": None})
    return Plot(name, title, caption, table, svg.getvalue().decode(), png.getvalue())


def save(plots: Sequence[Plot], folder: Path) -> None:
    """Write every plot as SVG and PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for plot in plots:
        (folder / f"{plot.name}.svg").write_text(plot.svg, encoding="utf-8")
        (folder / f"{plot.name}.png").write_bytes(plot.png)


def inline_svg(plot: Plot) -> str:
    """Return the drawing as an HTML element: named, scalable, with ids of its own."""
    start = plot.svg.index("<svg")
    svg = re.sub(r"<metadata>.*?</metadata>", "", plot.svg[start:], flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{plot.name}-', svg)
    svg = re.sub(r'href="#', f'href="#{plot.name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{plot.name}-", svg)
    svg = re.sub(r'<svg\b([^>]*?) width="[^"]*"', r"<svg\1", svg, count=1)
    svg = re.sub(r'<svg\b([^>]*?) height="[^"]*"', r"<svg\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-labelledby="{plot.name}-title"', 1)


def draw_lines(
    axes: Axes,
    series: Mapping[str, Mapping[int, float]],
    models: Sequence[str],
    *,
    markers: bool = False,
) -> None:
    """Draw one line a model over steps, layers or lengths."""
    for model, points in series.items():
        colour, marker, dashes, _ = look(model, models)
        steps = sorted(points)
        axes.plot(
            steps,
            [points[step] for step in steps],
            color=colour,
            linestyle=dashes,
            linewidth=1.7 if len(steps) <= 150 else 1.0,
            marker=marker if markers else "",
            label=model,
        )


def draw_bars(
    axes: Axes,
    groups: Sequence[str],
    values: Mapping[str, Sequence[float | None]],
    spread: Mapping[str, Sequence[tuple[float, float] | None]],
    models: Sequence[str],
) -> None:
    """Draw groups of bars, one a model, with whiskers; a missing value reads n/a."""
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
        for place, height, ends in zip(places, heights, spread[model], strict=True):
            if height is None or height < 0.01 * tallest:
                # A bar without height would look like a bar that is not there.
                text = "n/a" if height is None else f"{height:.1f}"
                axes.annotate(
                    text,
                    (place, height or 0.0),
                    (0, 4),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    rotation=90,
                    fontsize=7.5,
                    color=INK,
                )
            elif ends is not None:
                axes.errorbar(
                    place,
                    height,
                    yerr=[[max(0.0, height - ends[0])], [max(0.0, ends[1] - height)]],
                    color="#202124",
                    elinewidth=1,
                    capsize=2.5,
                )
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(axis="x", visible=False)
    missing = FEW_BARS - len(groups) * len(values)
    if missing > 0:
        # One bar alone would be as wide as the plot.
        margin = missing / 2 * width
        axes.set_xlim(-0.5 - margin, len(groups) - 0.5 + margin)


def legend_above(figure: Figure, axes: Axes, first: Sequence[str] = ()) -> None:
    """Put one legend over all panels, outside of the data; the names in `first` lead."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: (labels[i] not in first, i))
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    if handles:
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=len(handles) if len(handles) <= 7 else 5,
            handlelength=2.2,
        )
