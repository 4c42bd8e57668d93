"""The pictures of a training's way: what it restores and forgets by step, and what goes with it."""

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from longred.report.plots import Plot, draw, draw_lines, legend_above, look
from longred.report.restoration import Correlation, Point, by_method, correlation_words
from longred.report.tables import Table, number, with_interval

MEASURES: tuple[tuple[str, Callable[[Point], float | None]], ...] = (
    ("short average (%)", lambda point: point.short),
    ("last hidden state's cosine", lambda point: point.similarity),
    ("attention KL (nats per query)", lambda point: point.attention_kl),
)


def steps_plot(points: Sequence[Point]) -> Plot | None:
    """Draw the short average, similarity and attention KL over the steps, a line a method."""
    ways = by_method(points)
    series = {
        label: {
            method: {p.step: value for p in way if (value := read(p)) is not None}
            for method, way in ways.items()
        }
        for label, read in MEASURES
    }
    shown = {label: lines for label, lines in series.items() if any(lines.values())}
    if not shown:
        return None

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, (label, lines) in zip(panels, shown.items(), strict=True):
            draw_lines(axes, lines, list(ways), markers=True)
            axes.set_ylabel(label)
            axes.set_xlabel("optimizer step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            axes.ticklabel_format(axis="y", useOffset=False)
        legend_above(figure, panels[0])

    return draw(
        "restoration-steps",
        "Restored and forgotten over the steps",
        "The students that were kept on the way, on the same questions and the same text as the "
        "finished ones. Step 0 is the rescaled model before training; the last point is the "
        "finished student. The vertical axes do not start at zero.",
        points_table(points),
        paint,
        width=max(4.2, 2.75 * len(shown)),
        height=3.1,
    )


def retention_similarity_plot(points: Sequence[Point], found: Correlation | None) -> Plot | None:
    """Draw every student's retention over its similarity, with the correlation in words."""
    pairs = {
        method: [
            (p.step, p.similarity, p.retention)
            for p in way
            if p.similarity is not None and p.retention is not None
        ]
        for method, way in by_method(points).items()
    }
    if not any(pairs.values()):
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for method, way in pairs.items():
            colour, marker, dashes, _ = look(method, list(pairs))
            axes.plot(
                [similarity for _, similarity, _ in way],
                [retention for _, _, retention in way],
                color=colour,
                marker=marker,
                linestyle=dashes,
                linewidth=1.0,
                label=method,
            )
            for step, similarity, retention in way:
                axes.annotate(
                    str(step),
                    (similarity, retention),
                    (4, 4),
                    textcoords="offset points",
                    fontsize=7.5,
                    color=colour,
                )
        axes.axhline(100, color="#202124", linewidth=1, label="original (100 %)")
        axes.set_xlabel("mean cosine of the last hidden state to the original's")
        axes.set_ylabel("short retention (% of the original)")
        axes.ticklabel_format(axis="x", useOffset=False)
        legend_above(figure, axes, list(pairs))

    words = f" {correlation_words(found)}." if found is not None else ""
    return draw(
        "retention-similarity",
        "Retention and similarity",
        "Every kept student's short retention over its similarity to the original; lines join the "
        f"steps, whose numbers stand beside the points.{words}",
        points_table(points),
        paint,
        height=3.6,
    )


def points_table(points: Sequence[Point]) -> Table:
    """Return a row a student on its way."""
    rows = [
        [
            f"{point.method}, step {point.step}",
            number(point.short),
            number(point.ruler),
            with_interval(point.retention, point.interval),
            number(point.similarity, 5),
            number(point.attention_kl, 5),
        ]
        for point in points
    ]
    header = [
        "student",
        "short average",
        "RULER",
        "short retention",
        "similarity",
        "attention KL",
    ]
    return Table(header, rows)
