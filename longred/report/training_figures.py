"""Figures of training: losses, gradient norm, and the scores of saved students by step."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from longred.report.plots import (
    INK,
    Drawn,
    FigureData,
    draw_lines,
    integer_axis,
    legend_above,
    line_style,
)
from longred.report.restoration import by_method, correlation_words
from longred.report.tables import points_table, series_table

STEP_LABEL = "optimizer step"
TERMS = {
    "train/long_loss": ("Long text", "cross-entropy (nats per token)"),
    "train/short_distill_loss": ("Short distillation", "Σ over layers of 1 - cosine"),
    "train/short_to_long_loss": ("Short-to-long", "1 - cosine, last layer"),
    "train/attention_distill_loss": ("Attention distillation", "KL of relations (nats)"),
    "train/long_distill_loss": ("Long distillation", "1 - cosine, last layer"),
    "train/short_logit_loss": ("Predictions on short text", "KL (nats per token)"),
    "train/original_logit_loss": ("Predictions, original window", "KL (nats per token)"),
    "train/short_loss": ("Short text", "cross-entropy (nats per token)"),
    "train/original_loss": ("Original-window text", "cross-entropy (nats per token)"),
}
"""Metric key of a loss term → title and unit; terms of other names are drawn after these."""

MEASURES = {
    "short_average": "short average (%)",
    "similarity": "last hidden state's cosine",
    "attention_kl": "attention KL (nats per query)",
}
"""Attribute of a point → axis label."""


def losses(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw every term of the loss by optimizer step: one panel per term, one line per method."""
    logged = dict.fromkeys(key for journal in data.journals.values() for key in journal)
    terms = {
        key: series
        for key in TERMS | logged
        if key.startswith("train/") and key.endswith("_loss") and (series := _series(data, key))
    }
    if not terms:
        return None
    num_columns, num_rows = min(3, len(terms)), -(-len(terms) // 3)
    figure.set_size_inches(max(4.6, 2.75 * num_columns), 3.3 if num_rows == 1 else 5.6)
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    columns: dict[str, Mapping[int, float]] = {}
    for key, series in terms.items():
        axes = panels.pop(0)
        title, unit = TERMS.get(key, (key.removeprefix("train/").replace("_", " "), "loss"))
        axes.set_title(title)
        axes.set_ylabel(unit)
        draw_lines(axes, series, list(data.journals))
        integer_axis(axes, STEP_LABEL, 5)
        axes.set_xlim(left=0)
        if "cosine" in unit:
            axes.set_ylim(bottom=0)
        columns |= {f"{method}: {title.lower()}": points for method, points in series.items()}
    for axes in panels:
        axes.set_axis_off()
    first = figure.axes[0]
    # The legend names every method, also those without a line in the first panel.
    for method in data.journals:
        if method not in first.get_legend_handles_labels()[1]:
            style = line_style(method, list(data.journals)) | {"marker": ""}
            first.plot([], [], label=method, **style)
    legend_above(figure, first)
    return Drawn(series_table("step", columns, 4))


def grad_norm(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw the gradient norm before clipping by optimizer step, one line per method."""
    series = _series(data, "train/grad_norm")
    if not series:
        return None
    figure.set_size_inches(7.2, 2.8)
    axes = figure.subplots()
    draw_lines(axes, series, list(data.journals))
    axes.set_ylabel("gradient norm (L2)")
    axes.set_ylim(bottom=0)
    integer_axis(axes, STEP_LABEL, 5)
    axes.set_xlim(left=0)
    legend_above(figure, axes)
    return Drawn(series_table("step", series, 4))


def _series(data: FigureData, key: str) -> dict[str, Mapping[int, float]]:
    """Return one metric by method and step, without methods that did not log it."""
    return {method: journal[key] for method, journal in data.journals.items() if journal.get(key)}


def restoration_steps(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw short average, similarity and attention KL over the steps, one line per method."""
    methods = by_method(data.points)
    series = {
        label: {
            method: {p.step: getattr(p, key) for p in points if getattr(p, key) is not None}
            for method, points in methods.items()
        }
        for key, label in MEASURES.items()
    }
    measured = {label: lines for label, lines in series.items() if any(lines.values())}
    if not measured:
        return None
    figure.set_size_inches(max(4.2, 2.75 * len(measured)), 3.1)
    panels = figure.subplots(1, len(measured), squeeze=False)[0]
    for axes, (label, lines) in zip(panels, measured.items(), strict=True):
        draw_lines(axes, lines, list(methods), markers=True)
        axes.set_ylabel(label)
        integer_axis(axes, STEP_LABEL, 5)
    legend_above(figure, panels[0])
    return Drawn(points_table(data.points))


def retention_similarity(figure: Figure, data: FigureData) -> Drawn | None:
    """Draw the retention of every saved student over its similarity to the original."""
    found = [
        (p.similarity, p.retention, p.step, p.method)
        for p in data.points
        if p.similarity is not None and p.retention is not None
    ]
    if not found:
        return None
    figure.set_size_inches(7.2, 3.6)
    axes = figure.subplots()
    methods = list(by_method(data.points))
    for method in methods:
        points = [point for point in found if point[3] == method]
        x, y = [p[0] for p in points], [p[1] for p in points]
        style = line_style(method, methods)
        axes.plot(x, y, linewidth=1.0, label=method, **style)
        text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5}
        for similarity, retention, step, _ in points:
            axes.annotate(str(step), (similarity, retention), (4, 4), color=style["color"], **text)
    axes.axhline(100, color=INK, linewidth=1, label="original (100 %)")
    axes.set_xlabel("mean cosine of the last hidden state to the original's")
    axes.set_ylabel("short retention (% of the original)")
    legend_above(figure, axes, methods)
    words = "" if data.correlation is None else f" {correlation_words(data.correlation)}."
    return Drawn(points_table(data.points), {"correlation": words})
