"""Writes report folders: of a run, and of an evaluation outside of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longred.config import EvaluationConfig, ReportConfig
from longred.report import page
from longred.report.figures import FIGURES, SCORE_FIGURES, draw_all
from longred.report.inputs import Inputs
from longred.report.names import RESCALED
from longred.report.plots import FigureData, Plot
from longred.report.restoration import correlation, follow, restoration_metrics
from longred.report.scores import Comparison, collect, model_metrics
from longred.report.tables import markdown_page
from longred.store.artifacts import storage_errors, write_json
from longred.store.journal import JOURNAL_NAME, Journal


def write(config: ReportConfig, inputs: Inputs, folder: Path) -> None:
    """Compare the models; write index.html, table.md, scores.json, plots/ and metrics.jsonl.

    The same inputs produce the same bytes, except for the times in metrics.jsonl.

    Args:
        config: title, and the threshold below which tasks are dropped.
        inputs: what the earlier stages measured.
        folder: an existing folder to fill.

    Raises:
        MismatchError: models answered different samples.
        StorageError: the disk is full.
    """
    comparison = collect(
        inputs.scores,
        original_window=inputs.original_window,
        min_points_above_chance=config.min_points_above_chance,
        method=inputs.method,
        baselines=inputs.baselines,
    )
    points = follow(comparison, inputs)
    correlated = correlation(points, seed=inputs.seed)
    figure_data = FigureData(
        comparison=comparison,
        folders=inputs.scores,
        original_window=inputs.original_window,
        method=inputs.method,
        drifts=comparison.drifts,
        profiled={RESCALED: inputs.drift},
        selection=inputs.selection,
        journals=inputs.journals,
        points=points,
        correlation=correlated,
    )
    content = page.run_content(config.title, inputs, comparison, points, correlated)
    _write_folder(folder, content, draw_all(FIGURES, figure_data), comparison)
    with storage_errors(folder):
        journal = Journal(folder / JOURNAL_NAME)
        for name in comparison.models:
            for step, values in model_metrics(comparison, name).items():
                journal.append({f"{name}/{key}": value for key, value in values.items()}, step=step)
                if name == inputs.method:
                    # Without a prefix too, so that runs of different methods share the key.
                    journal.append(values, step=step)
        for step, values in sorted(restoration_metrics(points, correlated).items()):
            journal.append(values, step=step)
        journal.close()


def write_evaluation(
    folder: Path,
    config: EvaluationConfig,
    folders: Mapping[str, Path],
    samples: Path,
    comparison: Comparison,
    sources: Mapping[str, str],
) -> None:
    """Write index.html, table.md, scores.json and plots/ of an evaluation into a user's folder.

    Args:
        folder: the user's folder; created if missing.
        config: how the models were evaluated.
        folders: model → folder of its evaluation artifact.
        samples: folder of the frozen samples.
        comparison: scores of the models.
        sources: model → its folder or hub name, with the commit.

    Raises:
        StorageError: the disk is full.
    """
    figure_data = FigureData(
        comparison=comparison,
        folders=folders,
        original_window=config.original_window,
        drifts=comparison.drifts,
    )
    content = page.evaluation_content(config, folders, samples, comparison, sources)
    folder.mkdir(parents=True, exist_ok=True)
    _write_folder(folder, content, draw_all(SCORE_FIGURES, figure_data), comparison)


def _write_folder(
    folder: Path, content: Mapping[str, Any], drawn: Sequence[Plot], comparison: Comparison
) -> None:
    html = page.render(content, drawn)
    with storage_errors(folder):
        (folder / "plots").mkdir(exist_ok=True)
        for plot in drawn:
            (folder / f"plots/{plot.name}.svg").write_text(plot.svg, encoding="utf-8")
            (folder / f"plots/{plot.name}.png").write_bytes(plot.png)
        (folder / "index.html").write_text(html, encoding="utf-8")
        (folder / "table.md").write_text(markdown_page(comparison), encoding="utf-8")
        write_json(folder / "scores.json", comparison.models)
