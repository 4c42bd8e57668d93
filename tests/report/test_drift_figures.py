from typing import Any
from xml.etree import ElementTree

import pytest

from longred.report.figures import draw_all
from longred.report.plots import FigureData, Plot


def drift(scale: float, *, num_layers: int = 3, num_heads: int = 2) -> dict[str, Any]:
    layers = range(num_layers)
    return {
        "attention_kl": [scale * (layer + 1) for layer in layers],
        "attention_kl_per_head": [[scale * (layer + 1)] * num_heads for layer in layers],
        "hidden_similarity": [1 - scale * (layer + 1) / 10 for layer in layers],
        "position_starts": [0, 1, 2, 3, 4, 6],
        "attention_kl_by_position": [[0.0, 0.1, 0.2, 0.3, 0.4, 0.5]] * num_layers,
        "hidden_similarity_by_position": [[1.0, 0.9, 0.8, 0.7, 0.6, 0.5]] * num_layers,
    }


def point(method: str, value: float, kl: float) -> dict[str, Any]:
    similarity = {"hidden_similarity": 1 - kl / 4, "last_similarity": 1 - kl / 2}
    return {"method": method, "value": value, "attention_kl": kl, **similarity}


def draw(name: str, data: FigureData) -> Plot:
    (plot,) = draw_all([name], data)
    assert plot.name == name
    assert plot.png.startswith(b"\x89PNG")
    ElementTree.fromstring(plot.svg)  # noqa: S314
    return plot


def test_layers_show_every_model_with_both_measures() -> None:
    drifts = {"rescaled": drift(0.1), "longred-c": drift(0.05)}
    plot = draw("drift-layers", FigureData(drifts=drifts))
    assert plot.table.header == [
        "decoder layer",
        "rescaled: attention KL",
        "longred-c: attention KL",
        "rescaled: similarity",
        "longred-c: similarity",
    ]
    assert plot.table.rows[2] == ["2", "0.30000", "0.15000", "0.97000", "0.98500"]


@pytest.mark.parametrize("start", [0, 992])
def test_the_caption_names_positions_beyond_the_original_window(start: int) -> None:
    found = {**drift(0.1), "student_start": start}
    data = FigureData(profiled={"rescaled": found}, selection={"distill_layers": [2, 3]})
    said = (
        "at the end of its target window, from position 992 on."
        in draw("attention-kl", data).caption
    )
    assert said == bool(start)


@pytest.mark.parametrize(("num_layers", "num_heads"), [(1, 1), (3, 2), (32, 64)])
def test_heads_fit_any_size(num_layers: int, num_heads: int) -> None:
    found = drift(0.1, num_layers=num_layers, num_heads=num_heads)
    plot = draw("drift-heads", FigureData(profiled={"rescaled": found}))
    assert len(plot.table.rows) == num_layers
    assert len(plot.table.rows[0]) == len(plot.table.header) == 1 + min(32, num_heads)


def test_positions_leave_out_the_first_and_give_the_mean_over_layers() -> None:
    plot = draw("drift-positions", FigureData(profiled={"rescaled": drift(0.1)}))
    assert [row[0] for row in plot.table.rows] == ["1", "2", "3", "4", "6"]
    assert plot.table.rows[-1][1:] == ["0.50000", "0.50000"]
    short = FigureData(profiled={"rescaled": {**drift(0.1), "position_starts": [0, 1]}})
    assert draw_all(["drift-positions"], short) == []


@pytest.mark.medium
def test_a_sweep_shows_theta_and_factors() -> None:
    points = [point("abf", 2e4, 0.1), point("abf", 1e6, 0.4), point("pi", 4, 1.0)]
    plots = [
        draw("drift-sweep", FigureData(sweep={"rope_theta_before": 1e4, "points": part}))
        for part in (points, points[:2], points[2:])
    ]
    assert [row[0] for row in plots[0].table.rows] == ["abf 20000", "abf 1e+06", "pi 4"]
