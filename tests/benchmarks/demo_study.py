"""Measure LongReD against its baselines on the demo model, over several seeds.

    python tests/benchmarks/demo_study.py --output tests/benchmarks/results/demo-study

The settings are those of the demo recipe with more samples. For every seed all students share data,
learning rate, steps and tokens; the interval of a difference is Student's t over the paired seeds.
Finished work is in the store: several processes may share the seeds, and a last call over all of
them only reads.
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
from longred.artifacts import Artifact, Store, write_json
from longred.config import RunConfig, load_recipe

STUDY = ["evaluation.ruler.num_samples=200", "evaluation.short.num_samples=200"]
QUANTITIES: dict[str, Callable[[Mapping[str, Any], RunConfig], float | None]] = {
    "short average": lambda s, c: s["short"].get("average"),
    "short retention": lambda s, c: s["retention"].get("short"),
    "RULER at original_window": lambda s, c: _ruler(s, c.original_window),
    "RULER at target_window": lambda s, c: _ruler(s, c.target_window),
    "similarity": lambda s, c: 100 * s["similarity"],
}


def _ruler(scores: Mapping[str, Any], length: int) -> float | None:
    return scores["ruler"].get(str(length), {}).get("average")


def run(config: RunConfig, store: Store) -> dict[str, Any]:
    """Run every stage by its library function and return the scores of all models."""
    base = stages.find_model(config.model)
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
    models: dict[str, Artifact] = {"original": base, "rescaled": extended, **students}
    scores = {
        name: stages.evaluate_model(
            config.evaluation, name, model, base, samples, data, store=store
        )
        for name, model in models.items()
    }
    recipe = config.model_dump(mode="json", exclude={"store", "tracking"})
    report = stages.write_report(
        config.report, recipe, data, extended, profile, layers, students, scores, store=store
    )
    result: dict[str, Any] = report.read_json("scores.json")
    return result


def summarise(
    runs: Sequence[Mapping[str, Any]], config: RunConfig, baseline: str
) -> dict[str, dict[str, Any]]:
    """Return mean by model, and the paired difference of the method to a baseline, per quantity."""
    summary: dict[str, dict[str, Any]] = {}
    for quantity, read in QUANTITIES.items():
        rows: dict[str, Any] = {}
        for model in runs[0]:
            values = [read(scores[model], config) for scores in runs]
            if all(value is not None for value in values):
                rows[model] = {"values": values, "mean": statistics.fmean(values)}  # type: ignore[type-var,arg-type]
        if {config.training.method, baseline} <= rows.keys():
            ours, theirs = rows[config.training.method]["values"], rows[baseline]["values"]
            rows["difference"] = paired_difference(ours, theirs)
        summary[quantity] = rows
    return summary


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | None]:
    """Return the mean difference and its 95 % interval by Student's t over the pairs."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return {"mean": mean, "low": None, "high": None}
    error = statistics.stdev(differences) / len(differences) ** 0.5
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half}


def table(summary: Mapping[str, Mapping[str, Any]], method: str, baseline: str) -> str:
    """Return the summary as a Markdown table."""
    models = [name for name in next(iter(summary.values())) if name != "difference"]
    lines = [
        f"| quantity | {' | '.join(models)} | {method} minus {baseline} (95 % interval) |",
        "|---" * (len(models) + 2) + "|",
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


def main() -> None:
    """Run the study and write its JSON and its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--store", type=Path, default=Path("outputs/study"))
    parser.add_argument("--output", type=Path, default=Path("outputs/study/demo-study"))
    parser.add_argument(
        "--set", nargs="*", default=[], help="section.key=value, on top of the study's own"
    )
    arguments = parser.parse_args()
    overrides = [*STUDY, *arguments.set]
    runs, seconds = [], []
    for seed in arguments.seeds:
        config = load_recipe("demo", [*overrides, f"seed={seed}"])
        start = time.perf_counter()
        runs.append(run(config, Store(arguments.store)))
        seconds.append(round(time.perf_counter() - start, 1))
        print(f"seed {seed}: {seconds[-1]} s", flush=True)
    baseline = config.training.baselines[0]
    summary = summarise(runs, config, baseline)
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
            "summary": summary,
            "runs": runs,
        },
    )
    text = table(summary, config.training.method, baseline)
    arguments.output.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
