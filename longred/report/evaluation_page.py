"""The page of an evaluation outside of a pipeline: scores, retention, plots and samples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from longred.config import EvaluationConfig
from longred.report import page, plots, provenance, tables
from longred.report.content import sample_sections
from longred.report.figures import evaluation_plots
from longred.report.scores import Comparison, collect
from longred.store.artifacts import storage_errors, write_json


def compare(config: EvaluationConfig, folders: Mapping[str, Path]) -> Comparison:
    """Return the models' averages and retention; nothing is dropped.

    Args:
        config: what was asked.
        folders: model name → folder of its scores; `original` is what retention refers to.
    """
    return collect(
        folders,
        original_window=config.original_window,
        min_points_above_chance=0.0,
        dropped=[],
        seed=config.seed,
    )


def write_page(
    folder: Path,
    config: EvaluationConfig,
    folders: Mapping[str, Path],
    samples: Path,
    comparison: Comparison,
) -> None:
    """Write index.html, table.md, scores.json and plots/ into a folder of the user's.

    Raises:
        StorageError: the disk is full.
    """
    drawn = evaluation_plots(comparison, folders, original_window=config.original_window)
    html = page.render(_content(config, folders, samples, comparison), drawn)
    folder.mkdir(parents=True, exist_ok=True)
    with storage_errors(folder):
        plots.save(drawn, folder / "plots")
        (folder / "index.html").write_text(html, encoding="utf-8")
        (folder / "table.md").write_text(tables.markdown_page(comparison), encoding="utf-8")
        write_json(folder / "scores.json", comparison.models)


def _ruler_facts(config: EvaluationConfig) -> dict[str, str]:
    if not config.ruler.tasks:
        return {}
    lengths = ", ".join(f"{length:,}" for length in sorted(set(config.ruler.lengths)))
    return {"RULER": f"{config.ruler.num_samples} questions a task at {lengths} tokens"}


def _content(
    config: EvaluationConfig, folders: Mapping[str, Path], samples: Path, comparison: Comparison
) -> dict[str, Any]:
    asked = config.model_dump(mode="json")
    return {
        "title": f"Evaluation of {', '.join(folders)}",
        "facts": {
            "suite": config.short.suite,
            "original window": f"{config.original_window:,} tokens",
            **_ruler_facts(config),
            "dtype": config.dtype,
            "seed": str(config.seed),
        },
        "headlines": [],
        "result": tables.result_table(comparison),
        "differences": tables.difference_table(comparison),
        "findings": [],
        "short_average": tables.short_average_words(comparison),
        "dropped": [],
        "reasons": [],
        "samples": sample_sections(comparison, folders, samples),
        "provenance": [
            {"title": "Models", "table": provenance.model_table(folders, comparison.raw)},
        ],
        "environment": [],
        "recipe_text": yaml.safe_dump({"evaluation": asked}, sort_keys=False, width=100),
    }
