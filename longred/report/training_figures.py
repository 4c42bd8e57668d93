"""The plots of how the students came to be: losses, gradients, and which layers were distilled."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from longred.report.plots import Plot, draw, draw_lines, legend_above, look
from longred.report.tables import Table, number, series_table

Journals = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Student → metric key → step → value."""

TERMS = {
    "train/long_loss": ("Long text", "cross-entropy (nats per token)"),
    "train/short_distill_loss": ("Short distillation", "Σ over layers of 1 - cosine"),
    "train/short_to_long_loss": ("Short-to-long", "1 - cosine, last layer"),
    "train/attention_distill_loss": ("Attention distillation", "KL of relations (nats)"),
    "train/long_distill_loss": ("Long distillation", "1 - cosine, last layer"),
    "train/short_loss": ("Short text", "cross-entropy (nats per token)"),
    "train/original_loss": ("Original-window text", "cross-entropy (nats per token)"),
}


def loss_plot(journals: Journals) -> Plot | None:
    """Draw every term of the loss by optimizer step, a panel a term and a line a method."""
    keys = dict.fromkeys(TERMS)
    keys.update(dict.fromkeys(key for journal in journals.values() for key in journal))
    terms = {
        key: {method: journal[key] for method, journal in journals.items() if journal.get(key)}
        for key in keys
        if key.startswith("train/") and key.endswith("_loss")
    }
    terms = {key: series for key, series in terms.items() if series}
    if not terms:
        return None

    def paint(figure: Figure) -> None:
        panels = _panels(figure, len(terms))
        for axes, (key, series) in zip(panels, terms.items(), strict=True):
            title, unit = _term(key)
            axes.set_title(title)
            axes.set_ylabel(unit)
            draw_lines(axes, series, list(journals))
            _step_axis(axes)
            if "cosine" in unit:
                axes.set_ylim(bottom=0)
        _method_legend(figure, panels[0], list(journals))

    columns = {
        f"{method}: {_term(key)[0].lower()}": dict(points)
        for key, series in terms.items()
        for method, points in series.items()
    }
    return draw(
        "loss",
        "Loss by term",
        "Each term before its weight, per optimizer step. Methods that do not use a bucket have "
        "no line in its panel. The table shows at most 31 steps; the training's metrics.jsonl "
        "holds all.",
        series_table("step", columns, 4),
        paint,
        width=max(4.6, 2.75 * min(3, len(terms))),
        height=3.3 if len(terms) <= 3 else 5.6,
    )


def grad_norm_plot(journals: Journals) -> Plot | None:
    """Draw the gradient norm before clipping by optimizer step, a line a method."""
    key = "train/grad_norm"
    series = {method: journal[key] for method, journal in journals.items() if journal.get(key)}
    if not series:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        draw_lines(axes, series, list(journals))
        axes.set_ylabel("gradient norm (L2)")
        axes.set_ylim(bottom=0)
        _step_axis(axes)
        legend_above(figure, axes)

    columns = {method: dict(points) for method, points in series.items()}
    return draw(
        "grad-norm",
        "Gradient norm",
        "L2 norm of the whole gradient before clipping, per optimizer step.",
        series_table("step", columns, 4),
        paint,
        height=2.8,
    )


def attention_plot(drift: Mapping[str, Any], selection: Mapping[str, Any]) -> Plot | None:
    """Draw how far rescaling moved each decoder layer's attention; mark distilled layers."""
    scores = [float(score) for score in drift["attention_kl"]]
    # Selection names hidden states (1…N); hidden state i leaves decoder layer i-1.
    distilled = {int(layer) - 1 for layer in selection["distill_layers"]}
    layers = range(len(scores))
    accent, plain = look("longred-c", [])[0], "#9aa0a6"

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for chosen, colour, label in ((True, accent, "distilled"), (False, plain, "not distilled")):
            places = [layer for layer in layers if (layer in distilled) == chosen]
            heights = [scores[layer] for layer in places]
            bars = axes.bar(
                places,
                heights,
                width=0.7,
                color=colour,
                label=label,
                hatch="" if chosen else "\\\\\\\\",
            )
            for bar in bars:
                bar.set_edgecolor("white")
                bar.set_linewidth(0)
        axes.set_ylabel("attention KL (nats per query)")
        axes.set_xlabel("decoder layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
        axes.set_xlim(-0.6, len(scores) - 0.4)
        axes.grid(axis="x", visible=False)
        legend_above(figure, axes)

    similarity = [float(value) for value in drift["hidden_similarity"]]
    rows = [
        [
            str(layer),
            number(scores[layer], 5),
            number(similarity[layer], 5),
            "yes" if layer in distilled else "no",
        ]
        for layer in layers
    ]
    return draw(
        "attention-kl",
        "Attention drift and the layers distilled",
        "Mean KL divergence of the rescaled model's attention from the original's on held-out "
        "short text, per decoder "
        "layer counted from 0. Distilling decoder layer l matches the hidden state that leaves "
        "it; the last layer is "
        "always distilled.",
        Table(["decoder layer", "attention KL", "hidden similarity", "distilled"], rows),
        paint,
        height=3.0,
    )


def _term(key: str) -> tuple[str, str]:
    """Return the title and the unit of a term of the loss."""
    return TERMS.get(key, (key.removeprefix("train/").replace("_", " "), "loss"))


def _panels(figure: Figure, count: int) -> list[Axes]:
    """Return `count` panels, three in a row, and leave the rest of the last row empty."""
    columns = min(3, count)
    panels = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return panels[:count]


def _step_axis(axes: Axes) -> None:
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.set_xlim(left=0)


def _method_legend(figure: Figure, axes: Axes, methods: Sequence[str]) -> None:
    """Name every method once, also those without a line in the first panel."""
    drawn = set(axes.get_legend_handles_labels()[1])
    for method in methods:
        if method not in drawn:
            colour, _, dashes, _ = look(method, methods)
            axes.plot([], [], color=colour, linestyle=dashes, label=method)
    legend_above(figure, axes)
