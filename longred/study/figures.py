"""Figures of a study's panel: differences, front, retention, RULER, forgetting, drift by layer."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from longred.report.figures import FigureSpec, draw
from longred.report.plots import INK, Drawn, Plot, legend_above, line_style, look
from longred.report.text_table import Table
from longred.study.measures import ORIGINAL, RESCALED, STUDENT, at_step, common_steps, measure_of
from longred.study.result import Cell, Difference, Estimate, ModelScores, PanelResult, VariantResult
from longred.study.statistics import estimate, front
from longred.study.tables import change, number, operations, plus_minus

SHOWN = ("short_retention", "ruler")
"""The two measures that the figures weigh against each other."""
ROW_INCHES = 0.24


def names_of(panel: PanelResult) -> list[str]:
    """Return the names of everything that a figure of the panel may show, for its looks."""
    return [ORIGINAL, RESCALED, *(variant.name for variant in panel.variants)]


def differences(figure: Figure, panel: PanelResult) -> Drawn | None:
    """Draw every variant's difference from the baseline, with intervals, by the gain in RULER."""
    rows = [v for v in panel.variants if all(name in v.differences for name in SHOWN)]
    rows = [v for v in rows if v.name != panel.baseline]
    if not rows:
        return None
    rows.sort(key=lambda variant: variant.differences["ruler"].mean)
    figure.set_size_inches(7.2, 1.0 + ROW_INCHES * len(rows))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(panels, SHOWN, strict=True):
        for place, variant in enumerate(rows):
            found = variant.differences[name]
            is_sure = found.p_adjusted is not None and found.p_adjusted < 0.05
            colour = look(variant.name, names_of(panel))[0]
            axes.errorbar(
                found.mean,
                place,
                xerr=_errors(found),
                fmt="o",
                color=colour,
                markerfacecolor=colour if is_sure else "white",
                elinewidth=1.4,
                capsize=2.5,
            )
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_title(measure_of(name).text)
        axes.set_xlabel(f"minus {panel.baseline} (points)")
    panels[0].set_yticks(range(len(rows)), [variant.name for variant in rows])
    header = ["variant", *(measure_of(name).text for name in SHOWN)]
    cells = [[v.name, *(change(v.differences[name]) for name in SHOWN)] for v in rows[::-1]]
    return Drawn(Table(header, cells), {"baseline": panel.baseline})


def pareto(figure: Figure, panel: PanelResult) -> Drawn | None:
    """Draw retention against RULER, the area of a point by FLOPs, and ring the front."""
    wanted = (*SHOWN, "flops")
    rows = [v for v in panel.variants if all(name in v.estimates for name in wanted)]
    if len(rows) < 2:
        return None
    figure.set_size_inches(7.2, 4.4)
    axes = figure.subplots()
    points = {v.name: _means(v.estimates) for v in rows}
    best = front(points)
    most = max(flops for _, _, flops in points.values())
    for variant in rows:
        x, y = (variant.estimates[name] for name in SHOWN)
        colour, marker, _, _ = look(variant.name, names_of(panel))
        axes.errorbar(
            x.mean, y.mean, xerr=_errors(x), yerr=_errors(y), color=colour, elinewidth=0.7, zorder=2
        )
        area = 20 + 90 * points[variant.name][2] / most
        axes.scatter(x.mean, y.mean, s=area, color=colour, marker=marker, zorder=3)
        if variant.name in best:
            axes.scatter(
                x.mean,
                y.mean,
                s=area + 160,
                facecolors="none",
                edgecolors=INK,
                linewidths=1,
                zorder=4,
            )
    axes.set_xlabel("short retention (%)")
    axes.set_ylabel("RULER beyond the original window (%)")
    axes.margins(0.12)
    _label(figure, axes, {name: (x, y) for name, (x, y, _) in points.items()})
    table = Table(
        ["variant", "short retention", "RULER", "training FLOPs", "on the front"],
        [
            [
                v.name,
                *(plus_minus(v.estimates[name]) for name in SHOWN),
                operations(points[v.name][2]),
                "yes" if v.name in best else "no",
            ]
            for v in rows
        ],
    )
    return Drawn(table, {"front": ", ".join(best)})


def _means(estimates: Mapping[str, Estimate]) -> tuple[float, float, float]:
    first, second = SHOWN
    return estimates[first].mean, estimates[second].mean, estimates["flops"].mean


def _errors(found: Estimate | Difference) -> list[list[float]] | None:
    if found.low is None or found.high is None:
        return None
    return [[found.mean - found.low], [found.high - found.mean]]


def _label(figure: Figure, axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write each point's name beside it, where it covers least of other names and points."""
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    centres = {name: axes.transData.transform(point) for name, point in points.items()}
    taken: list[Any] = []
    places = [
        (dx, dy) for dx in (9, -9, 0) for dy in (7, -7, 16, -16, 26, -26) if dx or abs(dy) > 7
    ]
    inside = axes.get_window_extent(renderer)

    def write(name: str, dx: float, dy: float, **more: Any) -> Annotation:
        beside = "left" if dx > 0 else "right" if dx < 0 else "center"
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5, "color": INK}
        return axes.annotate(name, points[name], (dx, dy), ha=beside, va="center", **style, **more)

    for name in points:
        costs = []
        for dx, dy in places:
            text = write(name, dx, dy)
            box = text.get_window_extent(renderer)
            text.remove()
            cost = 10.0 * sum(box.overlaps(other) for other in taken)
            cost += 4.0 * sum(box.contains(*centre) for centre in centres.values())
            cost += 6.0 * (not (inside.x0 <= box.x0 and box.x1 <= inside.x1))
            costs.append((cost + 0.01 * abs(dy), dx, dy, box))
        _, dx, dy, box = min(costs, key=lambda each: each[:3])
        taken.append(box)
        line = {"arrowstyle": "-", "color": "#9aa0a6", "linewidth": 0.5}
        write(name, dx, dy, arrowprops=line)


def _curve(axes: Axes, points: Mapping[float, Estimate], name: str, names: Sequence[str]) -> None:
    """Draw a line through means, with whiskers to the ends of their intervals."""
    whiskers = [_errors(each) or [[0.0], [0.0]] for each in points.values()]
    axes.errorbar(
        list(points),
        [each.mean for each in points.values()],
        yerr=np.array([[low for [low], _ in whiskers], [high for _, [high] in whiskers]]),
        elinewidth=0.8,
        capsize=2,
        label=name,
        **line_style(name, names),
    )


def retention(figure: Figure, panel: PanelResult) -> Drawn | None:
    """Draw the short retention of every variant as a bar, and the original as a line at 100 %."""
    rescaled = panel.references.get(RESCALED, {}).get("short_retention")
    found = {RESCALED: rescaled} if rescaled else {}
    found |= {
        v.name: v.estimates["short_retention"]
        for v in panel.variants
        if "short_retention" in v.estimates
    }
    if not found:
        return None
    figure.set_size_inches(7.2, 1.0 + ROW_INCHES * len(found))
    axes = figure.subplots()
    for place, (name, value) in enumerate(reversed(found.items())):
        colour, _, _, hatch = look(name, names_of(panel))
        style: dict[str, Any] = {"edgecolor": "white", "linewidth": 0, "height": 0.72}
        axes.barh(place, value.mean, facecolor=colour, hatch=hatch, **style)
        axes.errorbar(value.mean, place, xerr=_errors(value), color=INK, elinewidth=1, capsize=2.5)
    axes.axvline(100, color=INK, linewidth=1)
    axes.set_yticks(range(len(found)), list(found)[::-1])
    axes.grid(axis="y", visible=False)
    lows = [value.mean if value.low is None else value.low for value in found.values()]
    axes.set_xlim(left=max(0.0, min(lows) - 8))
    axes.set_xlabel("short retention (% of the original; the axis does not start at zero)")
    rows = [[name, plus_minus(value)] for name, value in found.items()]
    return Drawn(Table(["model", "short retention"], rows))


def ruler(figure: Figure, panel: PanelResult) -> Drawn | None:
    """Draw RULER by length, one line a variant; whiskers are intervals over seeds."""
    if not panel.lengths:
        return None
    estimates = {name: found for name, found in panel.references.items()}
    estimates |= {variant.name: variant.estimates for variant in panel.variants}
    axes = figure.subplots()
    figure.set_size_inches(7.2, 3.6 + 0.16 * (len(estimates) // 6))
    axes.set_xscale("log", base=2)
    rows = []
    for position, (name, found) in enumerate(estimates.items()):
        points = {n: found[f"ruler.{n}"] for n in panel.lengths if f"ruler.{n}" in found}
        rows.append([name, *(plus_minus(points.get(n)) for n in panel.lengths)])
        if not points:
            continue
        # Shifted a little, so that equal scores and whiskers stay visible.
        shift = 2 ** (0.02 * (position - len(estimates) / 2))
        moved = {n * shift: each for n, each in points.items()}
        _curve(axes, moved, name, names_of(panel))
    axes.axvline(panel.original_window, color="#5f6368", linewidth=1, linestyle=(0, (2, 2)))
    axes.set_xticks(panel.lengths, [f"{n:,}" for n in panel.lengths])
    axes.minorticks_off()
    axes.set_xlabel("length (tokens, logarithmic)")
    axes.set_ylabel("RULER (%)")
    axes.set_ylim(-2, 104)
    legend_above(figure, axes)
    return Drawn(Table(["model", *(f"RULER {n:,}" for n in panel.lengths)], rows))


def forgetting(figure: Figure, panel: PanelResult) -> Drawn | None:
    """Draw retention and RULER of the students saved during training, by step."""
    rows = [variant for variant in panel.variants if common_steps(variant.cells)]
    if not rows:
        return None
    figure.set_size_inches(7.2, 3.3)
    panels = figure.subplots(1, 2)
    cells = []
    for variant in rows:
        steps = [0, *common_steps(variant.cells)]
        curves = {name: _by_step(variant.cells, name, steps) for name in SHOWN}
        for axes, name in zip(panels, SHOWN, strict=True):
            known: dict[float, Estimate] = {s: e for s, e in curves[name].items() if e is not None}
            _curve(axes, known, variant.name, names_of(panel))
        cells += [
            [variant.name, str(step), *(plus_minus(curves[name][step]) for name in SHOWN)]
            for step in steps
        ]
    for axes, name in zip(panels, SHOWN, strict=True):
        axes.set_xlabel("training step (0: rescaled, untrained)")
        axes.set_ylabel(f"{measure_of(name).text} (%)")
    panels[0].axhline(100, color=INK, linewidth=1)
    legend_above(figure, panels[0])
    return Drawn(Table(["variant", "step", *(measure_of(name).text for name in SHOWN)], cells))


def _by_step(cells: Sequence[Cell], name: str, steps: Iterable[int]) -> dict[int, Estimate | None]:
    found: dict[int, Estimate | None] = {}
    for step in steps:
        values = {cell.seed: _value(at_step(cell, step), name) for cell in cells}
        known = {seed: value for seed, value in values.items() if value is not None}
        found[step] = estimate(known) if known and len(known) == len(values) else None
    return found


def _value(scores: ModelScores | None, name: str) -> float | None:
    if scores is None:
        return None
    return scores.ruler_average if name == "ruler" else scores.short_retention


def drift(figure: Figure, panel: PanelResult) -> Drawn | None:
    """Draw similarity of hidden states and KL of attention by decoder layer, means over seeds."""
    kinds = {
        "attention_kl_per_layer": "attention KL (nats)",
        "similarity_per_layer": "similarity of hidden states",
    }
    models: dict[str, Mapping[str, list[float]]] = {}
    baseline = next((v for v in panel.variants if v.name == panel.baseline), panel.variants[0])
    models[RESCALED] = {kind: _layers(baseline, kind, RESCALED) for kind in kinds}
    for variant in panel.variants:
        models[variant.name] = {kind: _layers(variant, kind, STUDENT) for kind in kinds}
    models = {name: found for name, found in models.items() if all(found.values())}
    if not models:
        return None
    figure.set_size_inches(7.2, 3.4 + 0.16 * (len(models) // 6))
    panels = figure.subplots(1, 2)
    for axes, (kind, text) in zip(panels, kinds.items(), strict=True):
        for name, found in models.items():
            style = line_style(name, names_of(panel))
            axes.plot(range(len(found[kind])), found[kind], label=name, markersize=3.5, **style)
        axes.set_xlabel("decoder layer")
        axes.set_ylabel(text)
        axes.set_xticks(range(len(next(iter(models.values()))[kind])))
    legend_above(figure, panels[0])
    rows = [
        [name, str(layer), number(kl, 4), number(similarity, 4)]
        for name, found in models.items()
        for layer, (kl, similarity) in enumerate(zip(*found.values(), strict=True))
    ]
    return Drawn(Table(["model", "layer", "attention KL", "similarity"], rows))


def _layers(variant: VariantResult, kind: str, model: str) -> list[float]:
    """Return the mean over seeds of a measure by layer; empty if a seed lacks it."""
    found = [getattr(cell.models.get(model), kind, None) for cell in variant.cells]
    if not found or not all(found):
        return []
    return [fmean(values) for values in zip(*found, strict=True)]


def correlation(figure: Figure, panel: PanelResult) -> Drawn | None:
    """Draw retention against similarity, a point for every student and saved student."""
    rows = []
    axes = figure.subplots()
    for variant in panel.variants:
        colour, marker, _, _ = look(variant.name, names_of(panel))
        pairs = [
            (scores.similarity, scores.short_retention, model)
            for cell in variant.cells
            for model, scores in cell.models.items()
            if model == STUDENT or model.isdigit()
            if scores.similarity is not None and scores.short_retention is not None
        ]
        if not pairs:
            continue
        x, y, models = zip(*pairs, strict=True)
        axes.scatter(x, y, s=16, color=colour, marker=marker, label=variant.name, alpha=0.8)
        rows += [
            [variant.name, m, number(a, 4), number(b)] for a, b, m in zip(x, y, models, strict=True)
        ]
    if not rows:
        return None
    figure.set_size_inches(7.2, 3.6 + 0.16 * (len(panel.variants) // 6))
    axes.set_xlabel("similarity of the last hidden state to the original's")
    axes.set_ylabel("short retention (%)")
    legend_above(figure, axes)
    return Drawn(Table(["variant", "model", "similarity", "short retention"], rows))


FIGURES: dict[str, FigureSpec[PanelResult]] = {
    "differences": FigureSpec(
        "Differences from {baseline}",
        "Mean over seeds of paired differences, with 95 % intervals. Filled points differ by the "
        "corrected test (p below 0.05).",
        differences,
    ),
    "pareto": FigureSpec(
        "Short retention against RULER",
        "Means over seeds with 95 % intervals; the area of a point grows with the training's "
        "FLOPs. Ringed: no other variant has more of both for no more FLOPs ({front}).",
        pareto,
    ),
    "retention": FigureSpec(
        "Short retention",
        "Score on short tasks in percent of the original's, on the same questions; whiskers: 95 % "
        "interval over seeds.",
        retention,
    ),
    "ruler": FigureSpec(
        "RULER by length",
        "Mean over the compared tasks; whiskers: 95 % interval over seeds. Dashed: the original "
        "window.",
        ruler,
    ),
    "forgetting": FigureSpec(
        "Restoration and forgetting",
        "Students saved during training; whiskers: 95 % interval over seeds. The vertical axes do "
        "not start at zero.",
        forgetting,
    ),
    "drift": FigureSpec(
        "Drift by layer",
        "Distance from the original on short text: mean KL of attention (0 is identical) and "
        "cosine of hidden states (1 is identical), means over seeds. Layers are counted from 0.",
        drift,
    ),
    "similarity": FigureSpec(
        "Retention and similarity",
        "One point for every student of every seed, those saved during training included.",
        correlation,
    ),
}


def draw_panel(panel: PanelResult) -> list[Plot]:
    """Draw the figures of a panel; skip those whose data is missing."""
    found = []
    for name, spec in FIGURES.items():
        plot = draw(f"{panel.name}-{name}", spec, panel)
        if plot is not None:
            found.append(plot)
    return found
