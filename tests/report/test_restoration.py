"""Saved students: values by training step, and the correlation of retention with similarity."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from study import KEEP_STEPS, KL, RECIPE, SIMILARITY, Study, write_report

from longred.report.figures import draw_all
from longred.report.findings import (
    CONTRADICTED,
    NOT_TESTABLE,
    OPEN,
    SUPPORTED,
    restoration_findings,
)
from longred.report.plots import FigureData
from longred.report.restoration import Point, correlation, restoration_metrics
from longred.store.journal import Journal


@pytest.fixture(scope="module")
def journal(report: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for line in Journal(report / "metrics.jsonl").read():
        found.setdefault(line["key"], {})[line["step"]] = line["value"]
    return found


def test_metrics_are_told_by_training_step(journal, study: Study) -> None:
    for method in ("longred-c", "cpt"):
        names = {0: "rescaled", 60: method} | {n: f"{method}-step-{n}" for n in KEEP_STEPS}
        short = {step: study.short_average(name) for step, name in names.items()}
        assert journal[f"{method}/by_step/short_average"] == pytest.approx(short)
        original = study.short_average("original")
        retention = {step: 100 * value / original for step, value in short.items()}
        assert journal[f"{method}/by_step/retention"] == pytest.approx(retention)
        similarity = {step: SIMILARITY[name][-1] for step, name in names.items()}
        assert journal[f"{method}/by_step/similarity"] == similarity
        assert journal[f"{method}/by_step/attention_kl"] == {s: KL[n] for s, n in names.items()}
    assert -1 < journal["restoration/spearman"][0] < 1
    # The tables list the final models only.
    assert not any("-step-" in key for key in journal)


@pytest.mark.medium
def test_a_run_that_kept_nothing_says_nothing(study: Study, tmp_path: Path) -> None:
    models = ("original", "rescaled", "cpt", "longred-c")
    recipe = {**RECIPE, "training": {**RECIPE["training"], "keep_steps": []}}
    scores = {name: study.scores[name] for name in models}
    folder = write_report(study, tmp_path / "out", recipe=recipe, scores=scores)
    assert not (folder / "plots/restoration-steps.png").exists()
    assert "rises with hidden-state similarity" not in (folder / "index.html").read_text()


def make_points(similarity, retention) -> list[Point]:
    return [
        Point(
            method="cpt",
            step=step,
            short_average=50.0 + step,
            ruler=None,
            retention=kept,
            interval=None,
            similarity=cosine,
            attention_kl=None,
        )
        for step, (cosine, kept) in enumerate(zip(similarity, retention, strict=True), start=1)
    ]


@pytest.mark.medium
def test_correlations_and_their_intervals_against_scipy() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=12)
    y = x + generator.normal(size=12)
    found = correlation(make_points(x, y), seed=1)
    assert found is not None
    assert found.num_points == 12
    assert found.pearson == pytest.approx(pearsonr(x, y).statistic)
    assert found.spearman == pytest.approx(spearmanr(x, y).statistic)
    places = np.random.default_rng(1).integers(12, size=(2000, 12))
    for statistic, ends in (
        (pearsonr, found.pearson_interval),
        (spearmanr, found.spearman_interval),
    ):
        slow = [statistic(x[row], y[row]).statistic for row in places]
        assert ends == pytest.approx(np.percentile(slow, [2.5, 97.5]))


def test_the_rescaled_model_counts_once() -> None:
    way = make_points([0.1, 0.2, 0.4, 0.3], [1.0, 2.0, 3.0, 4.0])
    starts = [
        Point(
            method=m,
            step=0,
            short_average=1.0,
            ruler=None,
            retention=0.5,
            interval=None,
            similarity=0.05,
            attention_kl=None,
        )
        for m in ("cpt", "longred-c")
    ]
    found = correlation([*starts, *way], seed=0)
    assert found is not None
    assert found.num_points == 5


@pytest.mark.parametrize(
    ("similarity", "retention", "verdict"),
    [
        (range(10), range(10), SUPPORTED),
        (range(10), [-i for i in range(10)], CONTRADICTED),
        (range(8), [1, 5, 2, 4, 3, 5, 1, 3], OPEN),
        (range(3), range(3), NOT_TESTABLE),
        ([1.0] * 8, range(8), NOT_TESTABLE),
    ],
)
def test_only_an_interval_gives_a_verdict(similarity, retention, verdict) -> None:
    points = make_points(similarity, retention)
    first = restoration_findings(points, correlation(points, seed=0))[0]
    assert first.verdict == verdict


def test_what_was_lost_again_is_said() -> None:
    points = make_points([0.9, 0.91, 0.92, 0.93], [80.0, 90.0, 95.0, 85.0])
    points[1] = Point(
        method="cpt",
        step=2,
        short_average=70.0,
        ruler=None,
        retention=90.0,
        interval=None,
        similarity=0.91,
        attention_kl=0.1,
    )
    words = restoration_findings(points, None)[1]
    assert words.claim == "Short average over the steps of cpt"
    assert words.evidence == (
        "51.0 at step 1, 70.0 at step 2, the highest, and 54.0 at step 4, the last"
    )
    assert restoration_findings([], None) == []
    assert restoration_metrics([], None) == {}


def test_pictures_of_what_is_known() -> None:
    points = make_points([0.9, 0.91, 0.92, 0.93], [80.0, 90.0, 95.0, 85.0])
    names = ("restoration-steps", "retention-similarity")
    known = FigureData(points=points, correlation=correlation(points, seed=0))
    steps, similarity = draw_all(names, known)
    assert steps.table.rows[0] == ["cpt, step 1", "51.0", "n/a", "80.0", "0.90000", "n/a"]
    assert "Spearman +0.40" in similarity.caption
    unknown = make_points([None] * 4, [None] * 4)
    assert draw_all(["retention-similarity"], FigureData(points=unknown)) == []
    assert draw_all(names, FigureData()) == []
