"""The page of a study: one file without scripts, fonts or external images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from longred import report
from longred.progress import duration
from longred.report.glossary import breakable
from longred.report.plots import Plot, inline_svg
from longred.report.text_table import Table
from longred.store.artifacts import storage_errors
from longred.study import tables
from longred.study.figures import draw_panel
from longred.study.result import ClaimResult, PanelResult, StudyResult

TERMS = {
    "short average": "mean over the capacities of the mean over the short tasks of each",
    "short retention": "short average in percent of the original's, on the same questions",
    "RULER": "mean over the compared tasks; without a length, the mean over the lengths beyond the "
    "original window",
    "similarity": "mean cosine of the last hidden state to the original's, on short text",
    "nats/token": "loss on held-out text",
    "FLOPs": "operations of student and teacher in training, as `longred plan` counts them",
    "long, mix, short": "what a method reads: long text alone, long and short text, short alone",
    "p": "of the paired t test over the seeds, after Holm's correction for all comparisons of the "
    "table, or for the number of claims; of a test that contradicts its claim, for all tests",
    "holds": "all tests of the claim have the claimed sign and a corrected p below 0.05",
    "does not hold": "a test has the opposite sign with a corrected p below 0.05",
    "not decided": "no test contradicts the claim, but one is compatible with no difference at all",
    "not testable": "a value is missing, or there is one seed only",
}


def write(result: StudyResult, folder: Path) -> None:
    """Write index.html, table.md and plots/ into an existing folder.

    Raises:
        StorageError: the disk is full.
    """
    plots = {panel.name: draw_panel(panel) for panel in result.panels}
    with storage_errors(folder):
        (folder / "plots").mkdir(exist_ok=True)
        for plot in (each for drawn in plots.values() for each in drawn):
            (folder / f"plots/{plot.name}.svg").write_text(plot.svg, encoding="utf-8")
            (folder / f"plots/{plot.name}.png").write_bytes(plot.png)
        (folder / "index.html").write_text(render(result, plots), encoding="utf-8")
        (folder / "table.md").write_text(tables.markdown(result), encoding="utf-8")


def render(result: StudyResult, plots: Mapping[str, list[Plot]]) -> str:
    """Return the page as HTML; all texts are escaped, only the SVGs are inserted as markup.

    Args:
        result: the study.
        plots: panel → its figures.
    """
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, Path(report.__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(breakable=breakable, change=tables.change, p=tables.p_text, tag=_tag)
    return environment.get_template("study.html").render(
        result=result,
        facts=_facts(result),
        panels=[_panel(panel, plots[panel.name]) for panel in result.panels],
        papers=[claim for claim in result.claims if not claim.is_ours],
        ours=[claim for claim in result.claims if claim.is_ours],
        counts=_counts(result.claims),
        terms=TERMS,
    )


def _facts(result: StudyResult) -> dict[str, str]:
    runs = f"{result.num_cells}"
    if result.num_cells < result.num_planned:
        runs += f" of {result.num_planned} (the others are not finished)"
    return {
        "date": result.date,
        "recipe": result.recipe,
        "seeds": ", ".join(map(str, result.seeds)),
        "runs": runs,
        "time": f"{duration(result.seconds)}, summed over the runs",
        "machine": result.machine,
        "versions": ", ".join(f"{name} {text}" for name, text in result.versions.items()),
        "digest": result.digest or "none yet",
    }


def _panel(panel: PanelResult, plots: list[Plot]) -> dict[str, Any]:
    return {
        "panel": panel,
        "labels": {v.name: _words(v.label, v.overrides) for v in panel.variants},
        "paper": tables.paper_table(panel),
        "main": tables.main_table(panel),
        "differences": tables.difference_table(panel),
        "budget": tables.budget_table(panel),
        "capacities": {name: ", ".join(tasks) for name, tasks in panel.capacities.items()},
        "cells": tables.cell_table(panel),
        "plots": [(plot, inline_svg(plot)) for plot in plots],
    }


def _words(label: str, overrides: list[str]) -> str:
    settings = f" ({', '.join(overrides)})" if overrides else ""
    return label + settings


def _counts(claims: list[ClaimResult]) -> Table | None:
    """Return how many claims of papers and of our own have each verdict."""
    if not claims:
        return None
    verdicts = ("holds", "does not hold", "not decided", "not testable")
    rows = [
        [name, *(str(sum(c.verdict == verdict for c in group)) for verdict in verdicts)]
        for name, group in (
            ("published", [claim for claim in claims if not claim.is_ours]),
            ("ours", [claim for claim in claims if claim.is_ours]),
        )
        if group
    ]
    return Table(["claims", *verdicts], rows)


def _tag(text: str) -> str:
    """Return a text as the name of a class or an anchor."""
    return "".join(c if c.isalnum() else "-" for c in text)
