"""Which plots a report holds: what the models can do first, then how they came to it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, LogFormatter, NullLocator
from matplotlib.transforms import blended_transform_factory

from longred.report.drift_figures import (
    heads_plot,
    layers_plot,
    model_positions_plot,
    positions_plot,
)
from longred.report.findings import RESCALED
from longred.report.heat_maps import depth_heat_map, pairs_heat_map, ruler_heat_map
from longred.report.inputs import Inputs
from longred.report.plots import Plot, draw, draw_bars, draw_lines, legend_above, look
from longred.report.restoration import Correlation, Point
from longred.report.restoration_figures import retention_similarity_plot, steps_plot
from longred.report.samples import Unit
from longred.report.scores import ORIGINAL, Comparison, score_of
from longred.report.tables import retention_table, ruler_table, series_table, short_table
from longred.report.training_figures import attention_plot, grad_norm_plot, loss_plot

Z95 = 1.96


def all_plots(
    inputs: Inputs, comparison: Comparison, points: Sequence[Point], found: Correlation | None
) -> list[Plot]:
    """Draw every plot for which there are numbers, what the models can do first.

    Args:
        inputs: what the report tells of.
        comparison: the scores of all models.
        points: the students on their way.
        found: how their retention goes with their similarity.
    """
    drifts = drifts_of(comparison)
    extended = {name: drifts[name] for name in (RESCALED, inputs.method) if name in drifts}
    candidates = [
        steps_plot(points),
        retention_similarity_plot(points, found),
        attention_plot(inputs.drift, inputs.selection),
        heads_plot(extended or {RESCALED: inputs.drift}),
        positions_plot(inputs.drift, RESCALED),
        model_positions_plot(drifts),
        loss_plot(inputs.journals),
        grad_norm_plot(inputs.journals),
    ]
    first = evaluation_plots(comparison, inputs.scores, original_window=inputs.original_window)
    return first + [plot for plot in candidates if plot is not None]


def drifts_of(comparison: Comparison) -> dict[str, Any]:
    """Return the drift of every model but the original from it, as its evaluation measured it."""
    found = {
        name: (raw.get("similarity") or {}).get("drift") for name, raw in comparison.raw.items()
    }
    return {name: drift for name, drift in found.items() if drift and name != ORIGINAL}


def evaluation_plots(
    comparison: Comparison, folders: Mapping[str, Path], *, original_window: int
) -> list[Plot]:
    """Draw what the models can do.

    Args:
        comparison: their scores.
        folders: model name → folder of its answers.
        original_window: the original's window, in tokens.
    """
    candidates = [
        retention_plot(comparison),
        short_plot(comparison),
        ruler_plot(comparison, original_window),
        ruler_heat_map(comparison),
        depth_heat_map(comparison, folders),
        pairs_heat_map(comparison, folders),
        perplexity_plot(comparison),
        layers_plot(drifts) if (drifts := drifts_of(comparison)) else None,
    ]
    return [plot for plot in candidates if plot is not None]


def perplexity_plot(comparison: Comparison) -> Plot | None:
    """Draw each model's perplexity on the longest held-out text, by position."""
    lengths = {int(n) for raw in comparison.raw.values() for n in raw.get("perplexity") or {}}
    if not lengths:
        return None
    longest = max(lengths)
    measured = {
        name: raw["perplexity"][str(longest)]
        for name, raw in comparison.raw.items()
        if str(longest) in (raw.get("perplexity") or {})
    }
    series = {
        name: {int(each["end"]): math.exp(each["nats"]) for each in found["bins"]}
        for name, found in measured.items()
    }

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        draw_lines(axes, series, list(comparison.raw), markers=True)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        # Powers of ten are far apart; the numbers between them are told where there is room.
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
        axes.set_ylabel("perplexity")
        axes.set_xlabel("position in the text (tokens)")
        axes.set_xlim(left=0)
        legend_above(figure, axes)

    return draw(
        "perplexity",
        f"Perplexity by position in held-out text of {longest:,} tokens",
        "exp of the mean cross-entropy of the tokens up to each mark, since the mark before; lower "
        f"is better. The vertical axis is logarithmic. {_overall(measured)}",
        series_table("position", series, 3),
        paint,
    )


def _overall(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Return each model's perplexity on all of the text, and on its key tokens if known."""
    whole = ", ".join(f"{name} {found['perplexity']:.2f}" for name, found in measured.items())
    text = f"On all of the text: {whole}."
    keys = {name: found for name, found in measured.items() if found.get("long_ppl") is not None}
    if not keys:
        return text
    number = next(iter(keys.values()))["num_key_tokens"]
    long_ppl = ", ".join(f"{name} {found['long_ppl']:.2f}" for name, found in keys.items())
    return f"{text} LongPPL, on the {number:,} tokens that need what is far away: {long_ppl}."


def ruler_plot(comparison: Comparison, original_window: int) -> Plot | None:
    """Draw each model's average over the compared RULER tasks by length."""
    lengths = [length for length, tasks in comparison.ruler_tasks.items() if tasks]
    if not lengths:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log", base=2)
        _draw_ruler(axes, comparison, lengths)
        if min(lengths) <= original_window < max(lengths):
            axes.axvline(
                original_window, color="#5f6368", linewidth=1, linestyle=(0, (2, 2)), zorder=0
            )
            above = blended_transform_factory(axes.transData, axes.transAxes)
            axes.text(
                original_window,
                1.01,
                "original window",
                transform=above,
                ha="center",
                color="#5f6368",
                fontsize=8,
            )
        axes.xaxis.set_major_locator(FixedLocator(lengths))
        axes.xaxis.set_major_formatter(FixedFormatter([f"{n:,}" for n in lengths]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("length (tokens, logarithmic)")
        axes.set_ylabel("RULER average (%)")
        axes.set_ylim(0, 104)
        legend_above(figure, axes)

    names = sorted({task for tasks in comparison.ruler_tasks.values() for task in tasks})
    return draw(
        "ruler",
        "RULER by length",
        f"Average over {', '.join(names)}; whiskers are 1.96 standard errors. The original "
        f"works up to {original_window:,} tokens.",
        ruler_table(comparison),
        paint,
    )


def _draw_ruler(axes: Axes, comparison: Comparison, lengths: Sequence[int]) -> None:
    """Draw one line with whiskers a model."""
    models = list(comparison.models)
    for position, (name, model) in enumerate(comparison.models.items()):
        averages = {n: model["ruler"][str(n)]["average"] for n in lengths}
        known = [n for n in lengths if averages[n] is not None]
        if not known:
            continue
        # Models lie a little apart, so that equal scores and whiskers stay visible.
        shift = 2 ** (0.035 * (position - (len(models) - 1) / 2))
        colour, marker, dashes, _ = look(name, models)
        errors = [_average_error(comparison, name, n) for n in known]
        axes.errorbar(
            [n * shift for n in known],
            [averages[n] for n in known],
            yerr=errors,
            color=colour,
            marker=marker,
            linestyle=dashes,
            elinewidth=1,
            capsize=2,
            label=name,
        )


def retention_plot(comparison: Comparison) -> Plot | None:
    """Draw retention with its interval and the line of the original."""
    models = [name for name in comparison.models if name != ORIGINAL]
    keys = ["short", *(str(length) for length in comparison.lengths)]

    def entry(name: str, key: str, kind: str) -> Any:
        values = comparison.models[name][kind]
        return values["short"] if key == "short" else values["ruler"][key]

    keys = [
        key for key in keys if any(entry(name, key, "retention") is not None for name in models)
    ]
    if not keys:
        return None
    values = {name: [entry(name, key, "retention") for key in keys] for name in models}
    spread = {name: [entry(name, key, "retention_interval") for key in keys] for name in models}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        groups = ["short tasks" if key == "short" else f"RULER {int(key):,}" for key in keys]
        draw_bars(axes, groups, values, spread, list(comparison.models))
        axes.axhline(100, color="#202124", linewidth=1, label="original (100 %)")
        axes.set_ylabel("retention (% of the original)")
        legend_above(figure, axes, models)

    return draw(
        "retention",
        "Retention",
        "Score of each model divided by the original's on the same samples, where the original "
        "has a score to keep: "
        "not beyond its own window. "
        "Whiskers: 95 % interval of a paired bootstrap over samples.",
        retention_table(comparison),
        paint,
    )


def short_plot(comparison: Comparison) -> Plot | None:
    """Draw each short task's score, a bar a model, with the level of guessing."""
    tasks = comparison.short_tasks
    if not tasks:
        return None
    values: dict[str, list[float | None]] = {}
    spread: dict[str, list[tuple[float, float] | None]] = {}
    for name, raw in comparison.raw.items():
        entries = [score_of(raw, Unit(task)) for task in tasks]
        values[name] = [float(entry["score"]) if entry else None for entry in entries]
        spread[name] = [_ends(entry) if entry else None for entry in entries]
    chances = [_chance(comparison, Unit(task)) for task in tasks]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        draw_bars(
            axes,
            [task.replace("_", " ") for task in tasks],
            values,
            spread,
            list(comparison.models),
        )
        for place, chance in enumerate(chances):
            label = "_" if place else "chance"
            axes.hlines(
                chance,
                place - 0.46,
                place + 0.46,
                color="#202124",
                linestyle=(0, (1, 1)),
                label=label,
            )
        axes.set_ylabel("score (%)")
        axes.set_ylim(0, 104)
        legend_above(figure, axes, list(comparison.models))

    return draw(
        "short-tasks",
        "Short tasks",
        "Score of each model on each compared short task; whiskers are 1.96 standard errors, the "
        "dotted line is what "
        "guessing scores.",
        short_table(comparison),
        paint,
        width=max(7.2, 1.6 * len(tasks)),
    )


def _ends(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    if entry.get("stderr") is None:
        return None
    score, error = float(entry["score"]), Z95 * float(entry["stderr"])
    return max(0.0, score - error), min(100.0, score + error)


def _chance(comparison: Comparison, unit: Unit) -> float:
    entries = [score_of(raw, unit) for raw in comparison.raw.values()]
    return next((float(entry.get("chance") or 0.0) for entry in entries if entry), 0.0)


def _average_error(comparison: Comparison, name: str, length: int) -> float:
    """Return 1.96 standard errors of the average over the tasks of one length, in points."""
    tasks = comparison.ruler_tasks[length]
    entries = [score_of(comparison.raw[name], Unit(task, length)) for task in tasks]
    errors = [float((entry or {}).get("stderr") or 0.0) for entry in entries]
    return Z95 * math.sqrt(sum(error**2 for error in errors)) / len(tasks)
