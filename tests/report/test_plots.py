"""Plots contain the given numbers, are deterministic, and reference nothing external."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from study import NUM_LAYERS, RECIPE, Study

from longred.report.figures import FIGURES, draw_all
from longred.report.inputs import read_inputs
from longred.report.names import RESCALED
from longred.report.plots import LOOKS, FigureData, Plot, inline_svg, look
from longred.report.restoration import correlation, follow
from longred.report.score_figures import short_tasks
from longred.report.scores import Comparison, collect


@pytest.fixture(scope="module")
def comparison(study: Study) -> Comparison:
    models = {name: path for name, path in study.scores.items() if "-step-" not in name}
    return collect(models, original_window=256, min_points_above_chance=10.0)


@pytest.fixture(scope="module")
def plots(study: Study, comparison: Comparison) -> dict[str, Plot]:
    inputs = read_inputs(
        recipe=RECIPE, students=study.students, scores=study.scores, **study.folders
    )
    points = follow(comparison, inputs)
    data = FigureData(
        comparison=comparison,
        folders=inputs.scores,
        original_window=256,
        method=inputs.method,
        drifts=comparison.drifts,
        profiled={RESCALED: inputs.drift},
        selection=inputs.selection,
        journals=inputs.journals,
        points=points,
        correlation=correlation(points, seed=0),
    )
    return {plot.name: plot for plot in draw_all(FIGURES, data)}


def test_every_plot_is_drawn_as_svg_and_png(plots: dict[str, Plot]) -> None:
    names = ["retention", "short-tasks", "ruler", "ruler-heat-map", "depth-heat-map"]
    names += ["drift-layers", "restoration-steps", "retention-similarity", "attention-kl"]
    names += ["drift-heads", "drift-positions", "drift-positions-models", "loss", "grad-norm"]
    assert list(plots) == names
    for plot in plots.values():
        ElementTree.fromstring(plot.svg)  # noqa: S314
        assert plot.png.startswith(b"\x89PNG")
        assert plot.table.rows
        assert plot.caption


def test_drawings_carry_no_date_and_no_version(plots: dict[str, Plot]) -> None:
    for plot in plots.values():
        assert "dc:date" not in plot.svg
        assert "matplotlib.org" not in plot.svg
        assert b"Software" not in plot.png


def test_inline_drawings_share_no_id_and_point_only_at_themselves(plots: dict[str, Plot]) -> None:
    seen: set[str] = set()
    for plot in plots.values():
        svg = inline_svg(plot)
        ids = set(re.findall(r'\bid="([^"]*)"', svg))
        assert not ids & seen
        seen |= ids
        targets = re.findall(r'href="#([^"]*)"', svg) + re.findall(r"url\(#([^)]*)\)", svg)
        assert targets
        assert set(targets) <= ids
        assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg)


def test_distilled_layers_are_the_decoder_layers_below_the_hidden_states(
    plots: dict[str, Plot],
) -> None:
    marked = {row[0] for row in plots["attention-kl"].table.rows if row[-1] == "yes"}
    # Hidden states 2, 3 and 4 leave decoder layers 1, 2 and 3.
    assert marked == {"1", "2", "3"}
    assert len(plots["attention-kl"].table.rows) == NUM_LAYERS


def test_the_loss_table_holds_first_and_last_step(plots: dict[str, Plot]) -> None:
    rows = plots["loss"].table.rows
    assert (rows[0][0], rows[-1][0]) == ("1", "60")
    assert len(rows) <= 31
    assert plots["loss"].table.header[:2] == ["step", "longred-c: long text"]


def test_terms_of_other_methods_get_panels_too() -> None:
    steps = {1: 2.0, 2: 1.5}
    keys = ("train/long_loss", "train/short_loss", "train/original_loss", "train/extra_loss")
    (plot,) = draw_all(["loss"], FigureData(journals={"mix-cpt": dict.fromkeys(keys, steps)}))
    assert plot.table.header[-1] == "mix-cpt: extra loss"


def test_nothing_to_show_draws_nothing() -> None:
    assert draw_all(FIGURES, FigureData()) == []
    assert draw_all(["loss"], FigureData(journals={"cpt": {}})) == []
    assert Comparison({}, {}, []).drifts == {}


def test_every_model_looks_different_in_colour_and_in_grey_print() -> None:
    models = [*LOOKS, "merge", "pose"]
    colours = [look(model, models)[0] for model in models]
    lines = [look(model, models)[1] for model in models]
    assert len(set(colours)) == len(set(lines)) == len(models)


def test_heat_maps_hold_the_scores_of_every_field(
    study: Study, comparison: Comparison, plots: dict[str, Plot]
) -> None:
    table = plots["ruler-heat-map"].table
    row = next(row for row in table.rows if row[0] == "niah_single_1")
    place = table.header.index("longred-c 512")
    scores = study.answers["longred-c", "niah_single_1@512"]
    assert row[place] == f"{scores.mean():.1f}"
    # The compared needle tasks at this length, in the first fifth of the depths.
    depths = plots["depth-heat-map"].table
    assert [r[0] for r in depths.rows] == [f"{20 * i}-{20 * i + 20} %" for i in range(5)]
    tasks = comparison.ruler_tasks[512]
    found = [study.answers["longred-c", f"{task}@512"] for task in tasks]
    first = [s for scores in found for i, s in enumerate(scores) if i % 20 < 4]
    assert depths.rows[0][depths.header.index("longred-c 512")] == f"{sum(first) / len(first):.1f}"


def test_a_task_without_a_score_has_no_line_of_chance(study: Study, comparison: Comparison) -> None:
    without = comparison.short_tasks[0]
    raw = {
        name: {**scores, "short": {**scores["short"], without: {"score": None}}}
        for name, scores in comparison.raw.items()
    }
    starts = []
    for each in (comparison, replace(comparison, raw=raw)):
        figure = Figure()
        data = FigureData(comparison=each, folders=study.scores, original_window=256)
        assert short_tasks(figure, data) is not None
        lines = [
            line
            for line in figure.axes[0].collections
            if isinstance(line, LineCollection) and line.get_label() == "chance"
        ]
        starts.append([segment[0][0] for line in lines for segment in line.get_segments()])
    assert starts[0] == pytest.approx([-0.46, 0.54, 1.54])
    assert starts[1] == pytest.approx([0.54, 1.54])
