"""Measure LongReD against its baselines on the demo model, over several seeds.

    python tests/benchmarks/demo_study.py --output tests/benchmarks/results/demo-study

The settings are those of the demo recipe with more samples. Within a seed, all students share data,
learning rate, steps and tokens. The interval of a difference is Student's t over the paired seeds.
A task that the original barely solves, by its mean over the seeds, is dropped for every seed, so
that every seed averages the same tasks. Finished stages are reused from the store: several
processes may split the seeds between them, and a final call over all seeds only reads results.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scipy import stats

from longred import stages
from longred.config import RunConfig, load_recipe
from longred.report.left_out import Dropped, barely_solved, score_of
from longred.report.names import ORIGINAL
from longred.report.samples import Unit
from longred.report.scores import Comparison, collect, units_of
from longred.store.artifacts import Artifact, Store, read_json, write_json

STUDY = ["evaluation.ruler.num_samples=200", "evaluation.short.num_samples=200"]
Read = Callable[[Mapping[str, Any]], float | None]
"""Takes one quantity out of a model's entry of `Comparison.models`."""


def run(config: RunConfig, store: Store) -> dict[str, Path]:
    """Run every stage up to the evaluation; return the folder of each model's scores."""
    base = stages.find_model(config.model, store=store)
    data = stages.prepare_data(config.data, base, store=store)
    extended = stages.extend_model(config.extension, base, store=store)
    profile = stages.profile_attention(config.profiling, base, extended, data, store=store)
    layers = stages.select_layers(config.selection, profile, store=store)
    students = {
        method: stages.train_student(
            config.training, method, base, extended, data, layers, store=store
        )
        for method in config.training.methods()
    }
    samples = stages.freeze_samples(config.evaluation, base, data, store=store)
    models: dict[str, Artifact] = {ORIGINAL: base, "rescaled": extended, **students}
    return {
        name: stages.evaluate_model(
            config.evaluation, name, model, base, samples, data, store=store
        ).folder
        for name, model in models.items()
    }


def dropped_tasks(
    originals: Sequence[Mapping[str, Any]], original_window: int, minimum: float
) -> list[Dropped]:
    """Return the tasks to drop for every seed, judged by the original's mean over the seeds.

    Args:
        originals: scores.json of the original, one per seed.
        original_window: the original's window, in tokens; a RULER task at a longer length is
            judged by its longest length within the window.
        minimum: percentage points above chance that a task needs.
    """
    units = units_of(originals)
    mean: dict[str, Any] = {"short": {}, "ruler": {}}
    for unit in units:
        entries = [score_of(original, unit) for original in originals]
        asked = [entry for entry in entries if entry is not None]
        group = mean["short"] if unit.length is None else mean["ruler"]
        if unit.length is not None:
            group = group.setdefault(str(unit.length), {})
        group[unit.task] = {
            key: statistics.fmean(float(entry.get(key) or 0.0) for entry in asked)
            for key in ("score", "chance")
        }
    dropped = barely_solved(mean, units, original_window, minimum)
    count = f" (mean over {len(originals)} seeds)"
    return [Dropped(entry.unit, entry.reason + count) for entry in dropped]


def compare(
    folders: Sequence[Mapping[str, Path]], config: RunConfig, dropped: Sequence[Dropped]
) -> list[Comparison]:
    """Return one comparison per seed, all over the same tasks."""
    return [
        collect(
            models,
            original_window=config.original_window,
            min_points_above_chance=config.report.min_points_above_chance,
            dropped=dropped,
        )
        for models in folders
    ]


def quantities(comparison: Comparison, original_window: int) -> dict[str, Read]:
    """Return the averages to report: row name → function that reads it from a model's entry."""
    found: dict[str, Read] = {
        "short average": lambda model: model["short"]["average"],
        "short retention": lambda model: model["retention"]["short"],
    }
    for capacity in comparison.capacities:
        found[f"capacity {capacity}"] = lambda model, c=capacity: model["capacities"][c]  # type: ignore[misc]
    for length in comparison.lengths:
        key = str(length)
        found[f"RULER at {length:,} tokens"] = lambda model, k=key: model["ruler"][k]["average"]  # type: ignore[misc]
        if length <= original_window:
            found[f"RULER retention at {length:,} tokens"] = (
                lambda model, k=key: model["retention"]["ruler"][k]  # type: ignore[misc]
            )
    found["similarity x 100"] = lambda model: 100 * model["similarity"]
    return found


def summarise(
    comparisons: Sequence[Comparison], original_window: int, method: str, baseline: str
) -> dict[str, dict[str, Any]]:
    """Return, per quantity, each model's mean and the paired difference of method and baseline."""
    summary: dict[str, dict[str, Any]] = {}
    for quantity, read in quantities(comparisons[0], original_window).items():
        rows: dict[str, Any] = {}
        for model in comparisons[0].models:
            values = [read(comparison.models[model]) for comparison in comparisons]
            known = [value for value in values if value is not None]
            if len(known) == len(values):
                rows[model] = {"values": known, "mean": statistics.fmean(known)}
        if {method, baseline} <= rows.keys():
            rows["difference"] = paired_difference(rows[method]["values"], rows[baseline]["values"])
        summary[quantity] = rows
    return summary


def task_means(comparisons: Sequence[Comparison]) -> dict[Unit, dict[str, float]]:
    """Return the mean over the seeds by task and model, dropped tasks included."""
    found: dict[Unit, dict[str, float]] = {}
    for unit in units_of(raw for comparison in comparisons for raw in comparison.raw.values()):
        found[unit] = {}
        for model in comparisons[0].models:
            entries = [score_of(comparison.raw[model], unit) for comparison in comparisons]
            scores = [float(entry["score"]) for entry in entries if entry is not None]
            if len(scores) == len(comparisons):
                found[unit][model] = statistics.fmean(scores)
    return found


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | None]:
    """Return the mean difference and its 95 % interval by Student's t over the pairs."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return {"mean": mean, "low": None, "high": None}
    error = statistics.stdev(differences) / len(differences) ** 0.5
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half}


def table(
    summary: Mapping[str, Mapping[str, Any]], models: Sequence[str], method: str, baseline: str
) -> str:
    """Return the summary as a Markdown table."""
    lines = [
        f"| mean over seeds | {' | '.join(models)} | {method} minus {baseline} (95 % interval) |",
        "|---" + "|---:" * (len(models) + 1) + "|",
    ]
    for quantity, rows in summary.items():
        cells = [f"{rows[m]['mean']:.2f}" if m in rows else "n/a" for m in models]
        difference = rows.get("difference")
        text = "n/a"
        if difference:
            text = f"{difference['mean']:+.2f}"
            if difference["low"] is not None:
                text += f" ({difference['low']:+.2f} … {difference['high']:+.2f})"
        lines.append(f"| {quantity} | {' | '.join(cells)} | {text} |")
    return "\n".join(lines)


def task_table(
    tasks: Mapping[Unit, Mapping[str, float]], models: Sequence[str], dropped: Sequence[Dropped]
) -> str:
    """Return a Markdown table of means by task, followed by the dropped tasks and the reasons."""
    left_out = {entry.unit for entry in dropped}
    lines = [f"| task | {' | '.join(models)} |", "|---" + "|---:" * len(models) + "|"]
    for unit, means in tasks.items():
        cells = [f"{means[m]:.2f}" if m in means else "n/a" for m in models]
        label = unit.label() + (" (dropped)" if unit in left_out else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    if dropped:
        lines += ["", "Dropped from every average, for every seed:", ""]
        lines += [f"- {entry.unit.label()}: {entry.reason}." for entry in dropped]
    return "\n".join(lines)


def result(folders: Sequence[Mapping[str, Path]], config: RunConfig) -> tuple[dict[str, Any], str]:
    """Return the results of the study, as JSON values and as Markdown.

    Args:
        folders: for each seed, model → folder of its scores.
        config: the recipe of any of the seeds.
    """
    method, baseline = config.training.method, config.training.baselines[0]
    originals = [read_json(models[ORIGINAL] / "scores.json") for models in folders]
    minimum = config.report.min_points_above_chance
    dropped = dropped_tasks(originals, config.original_window, minimum)
    comparisons = compare(folders, config, dropped)
    summary = summarise(comparisons, config.original_window, method, baseline)
    tasks = task_means(comparisons)
    models = list(comparisons[0].models)
    values = {
        "capacities": comparisons[0].capacities,
        "dropped": [
            {"task": entry.unit.task, "length": entry.unit.length, "reason": entry.reason}
            for entry in dropped
        ],
        "dropped_capacities": comparisons[0].dropped_capacities,
        "summary": summary,
        "tasks": [
            {"task": unit.task, "length": unit.length, "mean": means}
            for unit, means in tasks.items()
        ],
        "runs": [comparison.models for comparison in comparisons],
    }
    tables = [table(summary, models, method, baseline), task_table(tasks, models, dropped)]
    return values, "\n\n".join(tables)


def main() -> None:
    """Run the study and write its JSON and Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--store", type=Path, default=Path("outputs/study"))
    parser.add_argument("--output", type=Path, default=Path("outputs/study/demo-study"))
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        help="recipe overrides, section.key=value, applied after the study's own",
    )
    arguments = parser.parse_args()
    overrides = [*STUDY, *arguments.set]
    folders, seconds = [], []
    for seed in arguments.seeds:
        config = load_recipe("demo", [*overrides, f"seed={seed}"])
        start = time.perf_counter()
        folders.append(run(config, Store(arguments.store)))
        seconds.append(round(time.perf_counter() - start, 1))
        print(f"seed {seed}: {seconds[-1]} s", flush=True)
    values, text = result(folders, config)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.output.with_suffix(".json"),
        {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("torch", "transformers", "lm_eval")},
            "overrides": overrides,
            "config": config.model_dump(mode="json", exclude={"store", "tracking", "seed"}),
            "seeds": arguments.seeds,
            "seconds": seconds,
            **values,
        },
    )
    arguments.output.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
