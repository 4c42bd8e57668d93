"""The pictures of drift: by layer, by head, by position, and by how far RoPE is rescaled."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from longred.report.plots import Plot, draw, draw_lines, legend_above, look
from longred.report.tables import Table, number, series_table

Drifts = Mapping[str, Mapping[str, Any]]
"""Model → the JSON form of its drift from the original."""

COLOURS = "cividis"
"""The same lightness order to every eye, and in grey print."""

KL_LABEL = "attention KL (nats per query)"
COSINE_LABEL = "mean cosine to the original"


def layers_plot(drifts: Drifts) -> Plot:
    """Draw attention KL and hidden-state similarity by layer, a line a model."""
    kl = {name: dict(enumerate(map(float, d["attention_kl"]))) for name, d in drifts.items()}
    similarity = {
        name: dict(enumerate(map(float, d["hidden_similarity"]))) for name, d in drifts.items()
    }
    num_layers = max(len(points) for points in kl.values())

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for axes, series, label in ((left, kl, KL_LABEL), (right, similarity, COSINE_LABEL)):
            draw_lines(axes, series, list(drifts), markers=num_layers <= 40)
            axes.set_ylabel(label)
            _layer_axis(axes)
        left.set_ylim(bottom=0)
        right.axhline(1.0, color=look("original", [])[0], linewidth=1, label="original")
        right.ticklabel_format(axis="y", useOffset=False)
        left.axhline(0.0, color=look("original", [])[0], linewidth=1, label="original")
        legend_above(figure, left)

    columns = {f"{name}: attention KL": points for name, points in kl.items()}
    columns |= {f"{name}: similarity": points for name, points in similarity.items()}
    return draw(
        "drift-layers",
        "Drift by layer",
        "Left: mean KL of a model's attention from the original's; 0 is identical. Right: mean "
        "cosine between their hidden states after each layer; 1 is identical, and the axis does "
        "not start at zero. Both on the same short text.",
        series_table("decoder layer", columns, 5),
        paint,
        height=3.1,
    )


def heads_plot(drifts: Drifts) -> Plot:
    """Draw attention KL as maps of layers and heads, one a model, in the same colours."""
    maps = {name: np.array(d["attention_kl_per_head"], dtype=float) for name, d in drifts.items()}
    num_layers, num_heads = next(iter(maps.values())).shape
    highest = max(float(kl_NH.max()) for kl_NH in maps.values())
    scale = Normalize(0.0, highest or 1.0)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
        for axes, (name, kl_NH) in zip(panels, maps.items(), strict=True):
            # Cells as shapes, not as a picture in the picture: they print sharply.
            image = axes.pcolormesh(kl_NH, cmap=COLOURS, norm=scale)
            axes.grid(visible=False)
            axes.set_title(name)
            axes.set_xlabel("query head")
            for axis, count in ((axes.xaxis, num_heads), (axes.yaxis, num_layers)):
                shown = range(0, count, -(-count // 16))
                axis.set_major_locator(FixedLocator([place + 0.5 for place in shown]))
                axis.set_major_formatter(FixedFormatter([str(place) for place in shown]))
            if kl_NH.size <= 64:
                _write_cells(axes, kl_NH, highest)
        panels[0].set_ylabel("decoder layer")
        _as_shapes(figure.colorbar(image, ax=list(panels), label=KL_LABEL))

    shown = min(num_heads, 32 // len(maps))
    rows = [
        [
            str(layer),
            *(number(value, 4) for kl_NH in maps.values() for value in kl_NH[layer, :shown]),
        ]
        for layer in range(num_layers)
    ]
    header = [f"{name}: head {head}" for name in maps for head in range(shown)]
    return draw(
        "drift-heads",
        "Attention drift by head",
        f"Mean KL of each head's attention in {' and '.join(maps)} from the original's; layers "
        "and heads are counted from 0.",
        Table(["decoder layer", *header], rows),
        paint,
        height=min(5.2, 1.8 + 0.28 * max(5, num_layers)),
    )


def _as_shapes(bar: Colorbar) -> None:
    """Keep matplotlib from putting a colour bar into an SVG as a picture."""
    if bar.solids is not None:
        bar.solids.set_rasterized(False)


def _write_cells(axes: Axes, kl_NH: np.ndarray[Any, Any], highest: float) -> None:
    limit = highest * 0.55
    for (layer, head), value in np.ndenumerate(kl_NH):
        colour = "white" if value < limit else "black"
        axes.text(
            head + 0.5,
            layer + 0.5,
            f"{value:.2g}",
            ha="center",
            va="center",
            color=colour,
            fontsize=8,
        )


def positions_plot(drift: Mapping[str, Any], model: str) -> Plot | None:
    """Draw attention KL and similarity by position, a line a layer; None for rows of a token."""
    starts = [int(start) for start in drift["position_starts"]]
    if len(starts) < 3:
        return None
    # At position 0 a query sees only itself: its KL is 0 in every model.
    panels = [
        (KL_LABEL, np.array(drift["attention_kl_by_position"], dtype=float)[:, 1:]),
        (COSINE_LABEL, np.array(drift["hidden_similarity_by_position"], dtype=float)[:, 1:]),
    ]
    num_layers = len(panels[0][1])

    def paint(figure: Figure) -> None:
        both = figure.subplots(1, 2)
        colours = mpl.colormaps[COLOURS]
        scale = Normalize(0, max(1, num_layers - 1))
        for axes, (label, values_NP) in zip(both, panels, strict=True):
            _draw_layers(axes, starts[1:], values_NP, colours, scale)
            axes.set_ylabel(label)
            axes.ticklabel_format(axis="y", useOffset=False)
        both[0].set_ylim(bottom=0)
        scalar = mpl.cm.ScalarMappable(norm=scale, cmap=colours)
        bar = figure.colorbar(scalar, ax=list(both), label="decoder layer", pad=0.02)
        bar.locator = MaxNLocator(integer=True, nbins=8)
        bar.update_ticks()
        _as_shapes(bar)
        legend_above(figure, both[0])

    columns = {
        "attention KL": dict(zip(starts[1:], panels[0][1].mean(axis=0).tolist(), strict=True)),
        "similarity": dict(zip(starts[1:], panels[1][1].mean(axis=0).tolist(), strict=True)),
    }
    return draw(
        "drift-positions",
        "Drift by position",
        f"Attention KL and hidden-state similarity of {model} by the position of the query, "
        "averaged over bins that each start at a marked position; the table gives the mean over "
        "layers.",
        series_table("position", columns, 5),
        paint,
        height=3.2,
    )


def model_positions_plot(drifts: Drifts) -> Plot | None:
    """Draw attention KL and similarity by position, a line a model; None for rows of a token."""
    known = {name: d for name, d in drifts.items() if len(d["position_starts"]) > 2}
    if not known:
        return None

    def means(drift: Mapping[str, Any], key: str) -> dict[int, float]:
        # At position 0 a query sees only itself: its KL is 0 in every model.
        mean_P = np.array(drift[key], dtype=float).mean(axis=0)
        return dict(zip(map(int, drift["position_starts"][1:]), mean_P[1:].tolist(), strict=True))

    panels = {
        label: {name: means(drift, key) for name, drift in known.items()}
        for label, key in (
            (KL_LABEL, "attention_kl_by_position"),
            (COSINE_LABEL, "hidden_similarity_by_position"),
        )
    }

    def paint(figure: Figure) -> None:
        both = figure.subplots(1, 2)
        for axes, (label, series) in zip(both, panels.items(), strict=True):
            axes.set_xscale("log", base=2)
            draw_lines(axes, series, list(drifts), markers=True)
            axes.set_ylabel(label)
            axes.ticklabel_format(axis="y", useOffset=False)
            _position_axis(axes, sorted({start for line in series.values() for start in line}))
        both[0].set_ylim(bottom=0)
        legend_above(figure, both[0])

    columns = {
        f"{name}: {what}": series[name]
        for what, series in zip(("attention KL", "similarity"), panels.values(), strict=True)
        for name in series
    }
    return draw(
        "drift-positions-models",
        "Drift by position, model by model",
        "Mean over layers of attention KL and hidden-state similarity to the original by the "
        "position of the query, in bins that each start at a marked position.",
        series_table("position", columns, 5),
        paint,
        height=3.2,
    )


def _draw_layers(
    axes: Axes,
    starts: Sequence[int],
    values_NP: np.ndarray[Any, Any],
    colours: Colormap,
    scale: Normalize,
) -> None:
    axes.set_xscale("log", base=2)
    for layer, values_P in enumerate(values_NP):
        axes.plot(starts, values_P, color=colours(scale(layer)), linewidth=1.3)
    axes.plot(
        starts,
        values_NP.mean(axis=0),
        color=look("original", [])[0],
        linestyle="--",
        marker="o",
        markersize=3,
        label="mean over layers",
    )
    _position_axis(axes, starts)


def _position_axis(axes: Axes, starts: Sequence[int]) -> None:
    axes.set_xlabel("position (tokens, logarithmic)")
    octaves = [start for start in starts if start & (start - 1) == 0]
    axes.xaxis.set_major_locator(FixedLocator(octaves[:: max(1, -(-len(octaves) // 8))]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())


def sweep_plot(points: Sequence[Mapping[str, Any]], *, theta_before: float) -> Plot:
    """Draw drift over rope_theta for abf and over the factor for the other methods."""
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        by_method.setdefault(str(point["method"]), []).append(point)
    others = {name: found for name, found in by_method.items() if name != "abf"}
    groups = [group for group in ({"abf": by_method.get("abf", [])}, others) if any(group.values())]

    def paint(figure: Figure) -> None:
        columns = figure.subplots(2, len(groups), squeeze=False)
        for column, group in enumerate(groups):
            start = theta_before if "abf" in group else 1.0
            label = "rope_theta" if "abf" in group else "factor (target / original window)"
            for row, (key, unit) in enumerate(
                (("attention_kl", KL_LABEL), ("last_similarity", "last hidden state's cosine"))
            ):
                axes = columns[row][column]
                _draw_sweep(axes, group, key, start)
                axes.set_ylabel(unit)
                axes.ticklabel_format(axis="y", useOffset=False)
                if row == 1:
                    axes.set_xlabel(f"{label}, logarithmic")
            columns[0][column].set_title(", ".join(group))
            if len(group) > 1:
                columns[0][column].legend()

    rows = [
        [
            f"{point['method']} {point['value']:g}",
            number(point["attention_kl"], 5),
            number(point["hidden_similarity"], 5),
            number(point["last_similarity"], 5),
        ]
        for point in points
    ]
    header = ["RoPE", "attention KL", "similarity, mean of layers", "similarity, last layer"]
    return draw(
        "drift-sweep",
        "Drift by how far RoPE is rescaled",
        f"Mean attention KL over layers, and the last hidden state's cosine to the original's, of "
        f"models that differ from the original in RoPE alone (rope_theta {theta_before:,.0f} "
        "before). The first point is the original itself.",
        Table(header, rows),
        paint,
        width=4.2 if len(groups) == 1 else 7.2,
        height=4.6,
    )


def _draw_sweep(
    axes: Axes, group: Mapping[str, Sequence[Mapping[str, Any]]], key: str, start: float
) -> None:
    ideal = 0.0 if key == "attention_kl" else 1.0
    axes.set_xscale("log")
    for place, (method, found) in enumerate(group.items()):
        ordered = sorted(found, key=lambda point: float(point["value"]))
        colour, marker, dashes, _ = look(
            ("longred-c", "cpt", "mix-cpt", "longred-u")[place % 4], []
        )
        axes.plot(
            [start, *(float(point["value"]) for point in ordered)],
            [ideal, *(float(point[key]) for point in ordered)],
            color=colour,
            marker=marker,
            linestyle=dashes,
            label=method,
        )
    values = sorted({start, *(float(p["value"]) for found in group.values() for p in found)})
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(values) > 5:
        axes.tick_params(axis="x", labelrotation=45)


def _short(value: float) -> str:
    """Return 20000 as 20K and 5e6 as 5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _layer_axis(axes: Axes) -> None:
    axes.set_xlabel("decoder layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
