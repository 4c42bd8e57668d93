"""Figures of drift from the original: by layer, by head, by position and by RoPE setting."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullLocator

from longred.report.names import RESCALED
from longred.report.plots import (
    REFERENCE_INK,
    Drawn,
    Drifts,
    FigureData,
    draw_lines,
    integer_axis,
    legend_above,
    line_style,
    look,
    write_cell,
)
from longred.report.tables import number, series_table
from longred.report.text_table import Table

Lines = dict[str, dict[int, float]]
"""Model → layer or position → value."""

COLOURS = "cividis"
"""Its lightness rises evenly, for colour-blind readers and in grey print."""

KL_LABEL = "attention KL (nats per query)"
COSINE_LABEL = "mean cosine to the original"
LAYER_LABEL = "decoder layer"
THETA_LABEL, FACTOR_LABEL = "rope_theta", "factor (target / original window)"
NOT_DISTILLED_INK = "#9aa0a6"
POSITION_KEYS = {
    KL_LABEL: "attention_kl_by_position",
    COSINE_LABEL: "hidden_similarity_by_position",
}
SWEEP_LOOKS = ("longred-c", "cpt", "mix-cpt", "longred-u")
"""The methods whose colours the lines of a sweep borrow."""


def attention(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw the profiled attention KL of each decoder layer; mark the distilled layers."""
    if data.selection is None:
        return None
    (drift,) = data.profiled.values()
    # The selection names hidden states (1…N); hidden state i is the output of decoder layer i-1.
    distilled = {int(layer) - 1 for layer in data.selection["distill_layers"]}
    scores, layers = drift["attention_kl"], range(len(drift["attention_kl"]))
    figure.set_size_inches(7.2, 3.0)
    axes = figure.subplots()
    for chosen, colour, label, hatch in (
        (True, look("longred-c", [])[0], "distilled", ""),
        (False, NOT_DISTILLED_INK, "not distilled", "\\\\\\\\"),
    ):
        places = [layer for layer in layers if (layer in distilled) == chosen]
        heights = [scores[layer] for layer in places]
        style: dict[str, Any] = {"facecolor": colour, "edgecolor": "white", "linewidth": 0}
        axes.bar(places, heights, width=0.7, label=label, hatch=hatch, **style)
    axes.set_ylabel(KL_LABEL)
    integer_axis(axes, LAYER_LABEL, 16)
    axes.set_xlim(-0.6, len(scores) - 0.4)
    axes.grid(axis="x", visible=False)
    legend_above(figure, axes)
    values = zip(scores, drift["hidden_similarity"], strict=True)
    rows = [
        [str(layer), number(kl, 5), number(cosine, 5), "yes" if layer in distilled else "no"]
        for layer, (kl, cosine) in enumerate(values)
    ]
    table = Table([LAYER_LABEL, "attention KL", "hidden similarity", "distilled"], rows)
    start = int(drift.get("student_start", 0))
    positions = ""
    if start:
        positions = (
            " Inside its original window this model turns as the original does, so it read the "
            f"text at the end of its target window, from position {start:,} on."
        )
    return Drawn(table, {"positions": positions})


def layers(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw attention KL and hidden-state similarity by layer, one line per model."""
    if not data.drifts:
        return None
    kl, similarity = (
        {name: dict(enumerate(drift[key])) for name, drift in data.drifts.items()}
        for key in ("attention_kl", "hidden_similarity")
    )
    figure.set_size_inches(7.2, 3.1)
    few_layers = max(map(len, kl.values())) <= 40
    panels = _two_panels(figure, data, kl, similarity, markers=few_layers)
    for axes, ideal in zip(panels, (0.0, 1.0), strict=True):
        integer_axis(axes, LAYER_LABEL, 12)
        axes.axhline(ideal, color=REFERENCE_INK, linewidth=1, label="original")
    legend_above(figure, panels[0])
    return Drawn(series_table(LAYER_LABEL, _columns(kl, similarity), 5))


def _two_panels(
    figure: Figure, data: FigureData, kl: Lines, similarity: Lines, *, markers: bool
) -> list[Axes]:
    """Draw attention KL to the left and similarity to the right, one line per model."""
    panels = list(figure.subplots(1, 2))
    both = ((kl, KL_LABEL), (similarity, COSINE_LABEL))
    for axes, (lines, label) in zip(panels, both, strict=True):
        draw_lines(axes, lines, list(data.drifts), markers=markers)
        axes.set_ylabel(label)
    panels[0].set_ylim(bottom=0)
    return panels


def _columns(kl: Lines, similarity: Lines) -> Lines:
    columns = {f"{name}: attention KL": points for name, points in kl.items()}
    return columns | {f"{name}: similarity": points for name, points in similarity.items()}


def heads(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw attention KL as maps of layers and heads on one colour scale, one map per model."""
    extended = {n: data.drifts[n] for n in (RESCALED, data.method) if n in data.drifts}
    maps = {
        name: np.array(drift["attention_kl_per_head"], dtype=float)
        for name, drift in (extended or data.profiled).items()
    }
    if not maps:
        return None
    num_layers, num_heads = next(iter(maps.values())).shape
    highest = max(float(kl_NH.max()) for kl_NH in maps.values())
    scale = Normalize(0.0, highest or 1.0)
    figure.set_size_inches(7.2, min(5.2, 1.8 + 0.28 * max(5, num_layers)))
    panels = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    for axes, (name, kl_NH) in zip(panels, maps.items(), strict=True):
        # Cells are vector shapes instead of an embedded bitmap, so they print sharply.
        image = axes.pcolormesh(kl_NH, cmap=COLOURS, norm=scale)
        axes.grid(visible=False)
        axes.set_title(name)
        axes.set_xlabel("query head")
        for axis, count in ((axes.xaxis, num_heads), (axes.yaxis, num_layers)):
            marked = range(0, count, -(-count // 16))
            axis.set_ticks([place + 0.5 for place in marked], labels=list(map(str, marked)))
        for (layer, head), value in np.ndenumerate(kl_NH):
            if kl_NH.size <= 64:
                write_cell(axes, layer, head, f"{value:.2g}", dark=bool(value < highest * 0.55))
    panels[0].set_ylabel(LAYER_LABEL)
    _as_shapes(figure.colorbar(image, ax=list(panels), label=KL_LABEL))
    listed = min(num_heads, 32 // len(maps))
    rows = [
        [str(layer), *(number(kl, 4) for kl_NH in maps.values() for kl in kl_NH[layer, :listed])]
        for layer in range(num_layers)
    ]
    header = [LAYER_LABEL, *(f"{name}: head {head}" for name in maps for head in range(listed))]
    return Drawn(Table(header, rows), {"models": " and ".join(maps)})


def _as_shapes(bar: Colorbar) -> None:
    """Keep matplotlib from embedding a colour bar into an SVG as a bitmap."""
    if bar.solids is not None:
        bar.solids.set_rasterized(False)


def positions(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw the profiled model's drift by position, one line per layer and their mean."""
    known = _with_positions(data.profiled)
    if not known:
        return None
    ((model, drift),) = known.items()
    means = {label: _mean_by_position(drift, key) for label, key in POSITION_KEYS.items()}
    figure.set_size_inches(7.2, 3.2)
    panels = figure.subplots(1, 2)
    scale = Normalize(0, max(1, len(drift["attention_kl_by_position"]) - 1))
    scalar = mpl.cm.ScalarMappable(norm=scale, cmap=COLOURS)
    for axes, (label, mean) in zip(panels, means.items(), strict=True):
        axes.set_xscale("log", base=2)
        for layer, values_P in enumerate(drift[POSITION_KEYS[label]]):
            axes.plot(list(mean), values_P[1:], color=scalar.cmap(scale(layer)), linewidth=1.3)
        axes.plot(
            list(mean),
            list(mean.values()),
            color=REFERENCE_INK,
            linestyle="--",
            marker="o",
            markersize=3,
            label="mean over layers",
        )
        _position_axis(axes, list(mean))
        axes.set_ylabel(label)
    panels[0].set_ylim(bottom=0)
    ticks = MaxNLocator(integer=True, nbins=8)
    _as_shapes(figure.colorbar(scalar, ax=list(panels), label=LAYER_LABEL, pad=0.02, ticks=ticks))
    legend_above(figure, panels[0])
    columns = dict(zip(("attention KL", "similarity"), means.values(), strict=True))
    return Drawn(series_table("position", columns, 5), {"model": model})


def model_positions(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw drift by position as the mean over layers, one line per model."""
    known = _with_positions(data.drifts)
    if not known:
        return None
    kl, similarity = (
        {name: _mean_by_position(drift, key) for name, drift in known.items()}
        for key in POSITION_KEYS.values()
    )
    figure.set_size_inches(7.2, 3.2)
    panels = _two_panels(figure, data, kl, similarity, markers=True)
    for axes in panels:
        axes.set_xscale("log", base=2)
        _position_axis(axes, sorted({start for line in kl.values() for start in line}))
    legend_above(figure, panels[0])
    return Drawn(series_table("position", _columns(kl, similarity), 5))


def _with_positions(drifts: Drifts) -> Drifts:
    """Return the drifts that were measured at more than one position past the first."""
    return {name: drift for name, drift in drifts.items() if len(drift["position_starts"]) > 2}


def _mean_by_position(drift: Mapping[str, Any], key: str) -> dict[int, float]:
    """Return the mean over layers by position, without position 0.

    A query at position 0 sees only itself: its KL is 0 in every model.
    """
    mean_P = np.array(drift[key], dtype=float)[:, 1:].mean(axis=0)
    return dict(zip(map(int, drift["position_starts"][1:]), mean_P.tolist(), strict=True))


def _position_axis(axes: Axes, starts: Sequence[int]) -> None:
    axes.set_xlabel("position (tokens, logarithmic)")
    octaves = [start for start in starts if start & (start - 1) == 0]
    axes.set_xticks(octaves[:: max(1, -(-len(octaves) // 8))])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())


def sweep(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw drift over rope_theta for abf and over the factor for the other methods."""
    if data.sweep is None:
        return None
    points, theta_before = data.sweep["points"], data.sweep["rope_theta_before"]
    starts = {THETA_LABEL: theta_before, FACTOR_LABEL: 1.0}
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = {label: {} for label in starts}
    for point in points:
        label = THETA_LABEL if point["method"] == "abf" else FACTOR_LABEL
        groups[label].setdefault(point["method"], []).append(point)
    groups = {label: group for label, group in groups.items() if group}
    figure.set_size_inches(4.2 if len(groups) == 1 else 7.2, 4.6)
    columns = figure.subplots(2, len(groups), squeeze=False).T
    for (top, bottom), (label, group) in zip(columns, groups.items(), strict=True):
        _draw_sweep(top, group, "attention_kl", (starts[label], 0.0))
        _draw_sweep(bottom, group, "last_similarity", (starts[label], 1.0))
        top.set_ylabel(KL_LABEL)
        bottom.set_ylabel("last hidden state's cosine")
        bottom.set_xlabel(f"{label}, logarithmic")
        top.set_title(", ".join(group))
        if len(group) > 1:
            top.legend()
    keys = ("attention_kl", "hidden_similarity", "last_similarity")
    rows = [
        [f"{point['method']} {point['value']:g}", *(number(point[key], 5) for key in keys)]
        for point in points
    ]
    header = ["RoPE", "attention KL", "similarity, mean of layers", "similarity, last layer"]
    return Drawn(Table(header, rows), {"theta_before": theta_before})


def _draw_sweep(
    axes: Axes,
    group: Mapping[str, Sequence[Mapping[str, Any]]],
    key: str,
    original: tuple[float, float],
) -> None:
    """Draw one line per method; each starts at the original model's point."""
    axes.set_xscale("log")
    settings = {original[0]}
    for place, (method, found) in enumerate(group.items()):
        style = line_style(SWEEP_LOOKS[place % len(SWEEP_LOOKS)], [])
        ordered = sorted(found, key=lambda point: float(point["value"]))
        values = [original[0], *(float(point["value"]) for point in ordered)]
        measured = [original[1], *(float(point[key]) for point in ordered)]
        axes.plot(values, measured, label=method, **style)
        settings.update(values)
    axes.set_xticks(sorted(settings))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(settings) > 5:
        axes.tick_params(axis="x", labelrotation=45)
