"""Writes the report's folder: page, table, scores, plots and the comparison's metrics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longred.config import ReportConfig
from longred.report import figures, page, plots
from longred.report.content import page_content
from longred.report.inputs import read_inputs
from longred.report.restoration import (
    correlation,
    follow,
    restoration_findings,
    restoration_metrics,
)
from longred.report.scores import Comparison, collect
from longred.report.tables import markdown_page
from longred.store.artifacts import storage_errors, write_json
from longred.store.journal import JOURNAL_NAME, Journal


def write(
    config: ReportConfig,
    *,
    folder: Path,
    recipe: Mapping[str, Any],
    profile: Path,
    selection: Path,
    students: Mapping[str, Path],
    scores: Mapping[str, Path],
    data: Path,
    samples: Path,
) -> None:
    """Compare the models and write index.html, table.md, scores.json, plots/ and metrics.jsonl.

    The same inputs write the same bytes, but for the times in metrics.jsonl.

    Args:
        config: title, and which tasks are dropped.
        folder: an existing folder to fill.
        recipe: the whole recipe as plain values; windows, seed and method are read from it.
        profile: folder of the profiling artifact.
        selection: folder of the selection artifact.
        students: method → folder of its training artifact.
        scores: model → folder of its evaluation artifact.
        data: folder of the data artifact.
        samples: folder of the frozen samples that the models were asked.

    Raises:
        ConfigError: the recipe does not say its original_window, or no model was evaluated.
        MismatchError: an input lacks a file, or models answered different samples.
        StorageError: the disk is full.
    """
    inputs = read_inputs(
        recipe=recipe,
        profile=profile,
        selection=selection,
        students=students,
        scores=scores,
        data=data,
        samples=samples,
    )
    comparison = collect(
        inputs.scores,
        original_window=inputs.original_window,
        min_points_above_chance=config.min_points_above_chance,
        method=inputs.method,
        baselines=inputs.baselines,
        seed=inputs.seed,
    )
    points = follow(
        comparison,
        inputs.scores,
        inputs.kept,
        {method: int(found["num_steps"]) for method, found in inputs.trainings.items()},
        original_window=inputs.original_window,
        seed=inputs.seed,
    )
    together = correlation(points, seed=inputs.seed)
    drawn = figures.all_plots(inputs, comparison, points, together)
    content = page_content(config.title, inputs, comparison)
    content["findings"] += restoration_findings(points, together)
    html = page.render(content, drawn)
    with storage_errors(folder):
        plots.save(drawn, folder / "plots")
        (folder / "index.html").write_text(html, encoding="utf-8")
        (folder / "table.md").write_text(markdown_page(comparison), encoding="utf-8")
        write_json(folder / "scores.json", comparison.models)
        along = restoration_metrics(points, together)
        _write_metrics(folder / JOURNAL_NAME, comparison, inputs.method, along)


def metrics(comparison: Comparison, name: str) -> dict[int, dict[str, float]]:
    """Return a model's journal values by step: RULER at step = length, all else at step 0.

    Keys: `short/<task>`, `capacity/<capacity>` and `capacity/short` (the mean over capacities),
    `retention/<capacity>`, `retention/short`, `similarity/last`, `similarity/attention_kl`,
    `ruler/<task>`, `ruler/average`, `retention/ruler`, `held_out/nats_per_token`,
    `held_out/bits_per_byte`; a value that cannot be told is left out.
    """
    model = comparison.models[name]
    values: dict[int, dict[str, float | None]] = {
        0: {
            "capacity/short": model["short"]["average"],
            "retention/short": model["retention"]["short"],
            "similarity/last": model["similarity"],
            "similarity/attention_kl": model["attention_kl"],
            "held_out/nats_per_token": model["nats_per_token"],
            "held_out/bits_per_byte": model["bits_per_byte"],
            **{f"short/{task}": model["short"][task] for task in comparison.short_tasks},
            **{f"capacity/{name}": score for name, score in model["capacities"].items()},
            **{
                f"retention/{name}": kept for name, kept in model["retention"]["capacities"].items()
            },
        }
    }
    for length, tasks in comparison.ruler_tasks.items():
        scored = model["ruler"][str(length)]
        values[length] = {
            "ruler/average": scored["average"],
            "retention/ruler": model["retention"]["ruler"][str(length)],
            **{f"ruler/{task}": scored[task] for task in tasks},
        }
    return {
        step: {key: value for key, value in found.items() if value is not None}
        for step, found in values.items()
    }


def _write_metrics(
    path: Path, comparison: Comparison, method: str, along: Mapping[int, Mapping[str, float]]
) -> None:
    """Write every model's metrics as `<model>/<key>`, and the method's own also as `<key>`.

    Runs whose methods differ are then compared by one key.
    """
    journal = Journal(path)
    for name in comparison.models:
        for step, values in metrics(comparison, name).items():
            journal.append({f"{name}/{key}": value for key, value in values.items()}, step=step)
            if name == method:
                journal.append(values, step=step)
    for step, followed in sorted(along.items()):
        journal.append(followed, step=step)
    journal.close()
