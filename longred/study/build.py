"""Makes the typed result of a study, and its artifact, from what its finished runs measured."""

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from longred import __version__
from longred.method.methods import METHODS
from longred.method.rope import ROPE_METHODS
from longred.report.inputs import date_words
from longred.store.artifacts import Artifact, Store, write_json
from longred.study.cells import PlannedCell
from longred.study.claims import judge
from longred.study.gather import Finished, compared, dropped_tasks, read_cell
from longred.study.measures import ORIGINAL, RESCALED, common_steps, value_of
from longred.study.result import (
    RESULT_NAME,
    Cell,
    Estimate,
    PanelResult,
    StudyResult,
    VariantResult,
)
from longred.study.spec import Panel, Study
from longred.study.statistics import adjust, estimate, summarise

STAGE, VERSION = "study", 1
PACKAGES = ("torch", "transformers", "lm_eval", "prefect", "mlflow")


def assemble(
    name: str, given: str, study: Study, finished: Sequence[Finished], *, num_planned: int
) -> StudyResult:
    """Return the result of the finished runs of a study.

    Args:
        name: of the study's file.
        given: the name or path that `longred study` was given.
        study: the study.
        finished: its finished runs.
        num_planned: number of all its different runs.
    """
    cells: dict[tuple[str, str], list[Cell]] = {}
    panels = []
    for panel, group in study.panels.items():
        members = [each for each in finished if each.cell.panel == panel]
        if members:
            panels.append(_panel(panel, group, members, cells))
    machines = dict.fromkeys(
        cell.training.hardware for row in cells.values() for cell in row if cell.training
    )
    once = {each.cell.digest: each.seconds for each in finished}
    return StudyResult(
        name=name,
        study=given,
        title=study.title,
        description=study.description,
        digest="",
        recipe=study.recipe,
        seeds=list(study.seeds),
        num_cells=len(once),
        num_planned=num_planned,
        date=date_words(time.time()),
        machine="; ".join(machines) or platform.machine(),
        versions={"longred": __version__} | {package: version(package) for package in PACKAGES},
        seconds=round(sum(once.values()), 1),
        panels=panels,
        claims=judge(study, cells, given),
    )


def _panel(
    name: str,
    group: Panel,
    members: Sequence[Finished],
    cells: dict[tuple[str, str], list[Cell]],
) -> PanelResult:
    """Read one panel's runs; put its cells into `cells`."""
    dropped = dropped_tasks(members)
    comparisons = [compared(each, dropped) for each in members]
    for each, comparison in zip(members, comparisons, strict=True):
        row = cells.setdefault((name, each.cell.variant), [])
        row.append(read_cell(each, comparison))
    rows = {variant: cells[name, variant] for variant in group.variants if (name, variant) in cells}
    configs = {each.cell.variant: each.cell for each in members}
    lengths = sorted({length for each in comparisons for length in each.lengths})
    steps = sorted({step for row in rows.values() for step in common_steps(row)})
    first = comparisons[0]
    measures = _measures(first.capacities, first.short_tasks, lengths, bool(steps))
    baseline = rows.get(group.baseline, [])
    found = {variant: summarise(baseline, row, measures) for variant, row in rows.items()}
    differences = adjust(
        {variant: changes for variant, (_, changes) in found.items() if variant != group.baseline}
    )
    config = members[0].cell.config
    return PanelResult(
        name=name,
        title=group.title,
        original_window=config.original_window,
        target_window=max(each.cell.config.target_window for each in members),
        baseline=group.baseline,
        variants=[
            VariantResult(
                name=variant,
                label=group.variants[variant].label or variant,
                overrides=list(group.variants[variant].set),
                estimates=found[variant][0],
                differences=differences.get(variant, {}),
                cells=row,
                **_kind(configs[variant]),
            )
            for variant, row in rows.items()
        ],
        references=_references(baseline or next(iter(rows.values())), measures),
        lengths=lengths,
        capacities=first.capacities,
        dropped={entry.unit.label(): entry.reason for entry in dropped},
        steps=steps,
    )


def _kind(cell: PlannedCell) -> dict[str, Any]:
    """Return the words of the published table for a variant: method, RoPE and data."""
    config = cell.config
    recipe = config.training.recipe(config.training.method)
    trained = METHODS[recipe.merges] if recipe.merges else recipe
    buckets = [b for b in trained.buckets() if config.training.ratio.get(b, 1)]
    data = "mix" if len(buckets) > 1 else "long" if buckets == ["long"] else "short"
    rope = ROPE_METHODS[config.extension.method].title
    if config.extension.short_factor == "original":
        rope += ", mixed windows"
    return {"method": config.training.method, "rope": rope, "data": data}


def _measures(
    capacities: Mapping[str, Sequence[str]],
    tasks: Sequence[str],
    lengths: Sequence[int],
    has_steps: bool,
) -> list[str]:
    """Return the names of the measures that a panel's tables show."""
    names = ["short_average", "short_retention", "ruler", "average", "similarity", "attention_kl"]
    names += ["nats_per_token", "tokens", "flops", "seconds"]
    names += [f"ruler.{length}" for length in lengths]
    names += [f"capacity.{name}" for name in capacities] + [f"task.{name}" for name in tasks]
    if has_steps:
        names += ["tokens_to_retention.95", "tokens_to_ruler.50"]
    return names


def _references(row: Sequence[Cell], measures: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    found: dict[str, dict[str, Estimate]] = {}
    for model in (ORIGINAL, RESCALED):
        values = {
            name: {cell.seed: value_of(cell, name, model) for cell in row if model in cell.models}
            for name in measures
            if not name.startswith(("tokens", "flops", "seconds"))
        }
        found[model] = {
            name: estimate(
                {seed: float(value) for seed, value in each.items() if value is not None}
            )
            for name, each in values.items()
            if each and all(value is not None for value in each.values())
        }
    return {model: entries for model, entries in found.items() if entries}


def _known(values: Mapping[int, float | None]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if value is not None}


def commit(store: Store, study: Study, result: StudyResult) -> tuple[Artifact, StudyResult]:
    """Write the artifact of a complete study: study.json, table.md, the page and its plots.

    Its identity is that of the study's file and of the evaluations of its students, so that an
    unchanged study is one artifact, however often it was stopped.
    """
    from longred.study.page import write
    from longred.study.result import read_result

    values = {"study": study.model_dump(mode="json", exclude={"slots"}), "name": result.name}
    inputs = {
        f"{panel.name}/{variant.name}/{cell.seed}": cell.evaluation
        for panel in result.panels
        for variant in panel.variants
        for cell in variant.cells
    }
    digest = store.digest(STAGE, values, inputs, VERSION)

    def make(folder: Path, work: Path) -> None:
        whole = replace(result, digest=digest)
        write_json(folder / RESULT_NAME, whole.to_json())
        write(whole, folder)

    artifact = store.build(STAGE, values, inputs, make, VERSION)
    return artifact, read_result(artifact.folder)


def headline_metrics(result: StudyResult) -> dict[str, float]:
    """Return what MLflow shows of a study: the main means of every variant."""
    wanted = ("short_average", "short_retention", "ruler", "similarity")
    return {
        f"{panel.name}/{variant.name}/{name}": variant.estimates[name].mean
        for panel in result.panels
        for variant in panel.variants
        for name in wanted
        if name in variant.estimates
    }
