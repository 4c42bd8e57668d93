"""The table of all figures, in the order of the page: title, caption and drawing function."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import matplotlib as mpl
from matplotlib.figure import Figure

from longred.report import drift_figures, score_figures, training_figures
from longred.report.plots import Drawn, FigureData, Plot

STYLE = Path(__file__).with_name("figures.mplstyle")


Data = TypeVar("Data")


@dataclass(frozen=True, slots=True)
class FigureSpec(Generic[Data]):
    """One figure, drawn from data of one type.

    Attributes:
        title: heading on the page; `{...}` are values that the drawing function returns.
        caption: what is plotted and how to read it; with values as in `title`.
        fill: draws into an empty figure and returns its numbers; None if the data is missing.
    """

    title: str
    caption: str
    fill: Callable[[Figure, Data], Drawn | None]


FIGURES: dict[str, FigureSpec[FigureData]] = {
    "retention": FigureSpec(
        "Retention",
        "Score of each model divided by the score of the original on the same samples. RULER "
        "lengths beyond the original's own window are left out: the original has no score to "
        "retain there. Whiskers: 95 % interval.",
        score_figures.retention,
    ),
    "short-tasks": FigureSpec(
        "Short tasks",
        "Score of each model on each compared short task. Whiskers: 95 % interval, in brackets in "
        "the numbers below. Dotted line: chance level.",
        score_figures.short_tasks,
    ),
    "ruler": FigureSpec(
        "RULER by length",
        "Average over {tasks}. Whiskers: 95 % interval of the average; the brackets below are "
        "those of single tasks. The original's window is {window:,} tokens.",
        score_figures.ruler,
    ),
    "ruler-v2": FigureSpec(
        "RULER v2 by length",
        "Average over all tasks of RULER v2. Whiskers: 95 % interval of the average; the brackets "
        "below are those of single tasks. The original's window is {window:,} tokens.",
        score_figures.ruler_v2,
    ),
    "ruler-heat-map": FigureSpec(
        "RULER by task and length",
        "Score of every task at every length, in percent. An empty cell was not evaluated.",
        score_figures.ruler_heat_map,
    ),
    "depth-heat-map": FigureSpec(
        "Needles by depth and length",
        "Score of the compared needle tasks, in percent, by the share of the text that precedes "
        "the needle: 0 % is the start. An empty cell has no samples.",
        score_figures.depth_heat_map,
    ),
    "pairs-heat-map": FigureSpec(
        "Key-value retrieval by depth and length",
        "Score, in percent, of retrieving the value of one key from a long JSON object, by the "
        "share of the object that precedes the key. An empty cell has no samples.",
        score_figures.pairs_heat_map,
    ),
    "perplexity": FigureSpec(
        "Perplexity by position in held-out text of {length:,} tokens",
        "Exponential of the mean cross-entropy of the tokens between each marker and the one "
        "before it; lower is better. The vertical axis is logarithmic. {summary}",
        score_figures.perplexity,
    ),
    "drift-layers": FigureSpec(
        "Drift by layer",
        "Left: mean KL divergence of each model's attention from the original's; 0 is identical. "
        "Right: mean cosine between their hidden states after each layer; 1 is identical. The "
        "right axis does not start at zero. Both are measured on the same short text.",
        drift_figures.layers,
    ),
    "restoration-steps": FigureSpec(
        "Restoration and forgetting over training steps",
        "Students saved during training, evaluated on the same samples and the same text as the "
        "final ones. Step 0 is the rescaled model before training; the last point is the final "
        "student. The vertical axes do not start at zero.",
        training_figures.restoration_steps,
    ),
    "retention-similarity": FigureSpec(
        "Retention and similarity",
        "Short retention of every saved student over its similarity to the original. Lines "
        "connect the steps of one training; the numbers beside the points are steps.{correlation}",
        training_figures.retention_similarity,
    ),
    "attention-kl": FigureSpec(
        "Attention drift and distilled layers",
        "Mean KL divergence of the rescaled model's attention from the original's on held-out "
        "short text, per decoder layer, counted from 0. Distilling decoder layer l matches the "
        "hidden state that it outputs. The last layer is always distilled.{positions}",
        drift_figures.attention,
    ),
    "drift-heads": FigureSpec(
        "Attention drift by head",
        "Mean KL divergence of the attention of each head in {models} from the original's. Layers "
        "and heads are counted from 0.",
        drift_figures.heads,
    ),
    "drift-positions": FigureSpec(
        "Drift by position",
        "Attention KL and hidden-state similarity of {model} by the position of the query, "
        "averaged over bins. Each marker is the start of a bin. The table lists the mean over "
        "layers.",
        drift_figures.positions,
    ),
    "drift-positions-models": FigureSpec(
        "Drift by position, model by model",
        "Attention KL and hidden-state similarity to the original by the position of the query: "
        "mean over layers, averaged over bins. Each marker is the start of a bin.",
        drift_figures.model_positions,
    ),
    "loss": FigureSpec(
        "Loss by term",
        "Each term before its weight is applied, per optimizer step. Methods that do not use a "
        "bucket have no line in its panel. The table lists at most 31 steps; metrics.jsonl of the "
        "training has all of them.",
        training_figures.losses,
    ),
    "grad-norm": FigureSpec(
        "Gradient norm",
        "L2 norm of the whole gradient before clipping, per optimizer step.",
        training_figures.grad_norm,
    ),
    "drift-sweep": FigureSpec(
        "Drift by RoPE setting",
        "Mean attention KL over layers, and cosine of the last hidden state to the original's, of "
        "models that differ from the original only in RoPE (original rope_theta: "
        "{theta_before:,.0f}). The first point is the original itself.",
        drift_figures.sweep,
    ),
}
SCORE_FIGURES = tuple(FIGURES)[: tuple(FIGURES).index("drift-layers") + 1]
"""The figures that need evaluations alone."""


def draw_all(names: Iterable[str], data: FigureData) -> list[Plot]:
    """Draw the named figures of `FIGURES`; skip those whose data is missing.

    The same data always produces the same bytes of SVG and PNG.
    """
    return [plot for name in names if (plot := draw(name, FIGURES[name], data)) is not None]


def draw(name: str, spec: FigureSpec[Data], data: Data) -> Plot | None:
    """Draw one figure; None if its data is missing.

    Args:
        name: file name without suffix; ids inside the SVG start with it.
        spec: the figure.
        data: what it is drawn from.
    """
    with mpl.rc_context({"svg.hashsalt": f"longred-{name}"}, fname=STYLE):
        figure = Figure(figsize=(7.2, 3.3), layout="constrained")
        drawn = spec.fill(figure, data)
        if drawn is None:
            return None
        # The layout is computed once, not for each format.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        svg, png = io.BytesIO(), io.BytesIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", metadata=no_metadata)
        figure.savefig(png, format="png", metadata={"Software": None})
    title, caption = spec.title.format(**drawn.values), spec.caption.format(**drawn.values)
    return Plot(name, title, caption, drawn.table, svg.getvalue().decode(), png.getvalue())
