"""Measure how many layers to distil, and which rule would choose that number from layer scores.

    python tests/benchmarks/selection_ablation.py --output tests/benchmarks/results/selection-auto

Trains and evaluates the demo model once per number of layers. The distilled layers are those with
the highest attention KL, and the last. The rules use only the layer scores: a share of the total
KL, or the knee of the sorted curve. Finished stages are reused from the store.
"""

import argparse
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from longred import stages
from longred.config import RunConfig, load_recipe
from longred.store.artifacts import Artifact, Store, write_json


def share(part: float) -> Callable[[Sequence[float]], int]:
    """Return a rule: the fewest layers, including the last, with this share of the total KL."""

    def rule(scores: Sequence[float]) -> int:
        total, held = sum(scores), scores[-1]
        for count, score in enumerate(sorted(scores[:-1], reverse=True), start=1):
            if held >= part * total:
                return count
            held += score
        return len(scores)

    return rule


def knee(scores: Sequence[float]) -> int:
    """Return how many layers lie before the knee of the sorted scores, plus one: the last layer.

    The knee is where the sorted curve, without the last layer, lies farthest below the line through
    its ends (Kneedle without smoothing). If there is no knee, all layers are chosen.
    """
    ordered = sorted(scores[:-1], reverse=True)
    if len(ordered) < 3 or ordered[0] == ordered[-1]:
        return len(scores)
    height = ordered[0] - ordered[-1]
    below = [
        1 - place / (len(ordered) - 1) - (score - ordered[-1]) / height
        for place, score in enumerate(ordered)
    ]
    return max(range(len(below)), key=lambda place: below[place]) + 1


RULES: dict[str, Callable[[Sequence[float]], int]] = {
    "half of the KL": share(0.5),
    "two thirds of the KL": share(2 / 3),
    "three quarters of the KL": share(0.75),
    "nine tenths of the KL": share(0.9),
    "knee": knee,
}


def run(config: RunConfig, counts: Sequence[int], store: Store) -> dict[str, Any]:
    """Train and evaluate a student for each number of layers; return the scores by number."""
    base = stages.find_model(config.model, store=store)
    data = stages.prepare_data(config.data, base, store=store)
    extended = stages.extend_model(config.extension, base, store=store)
    profile = stages.profile_attention(config.profiling, base, extended, data, store=store)
    samples = stages.freeze_samples(config.evaluation, base, data, store=store)

    def evaluate(name: str, model: Artifact) -> dict[str, float]:
        scores = stages.evaluate_model(
            config.evaluation, name, model, base, samples, data, store=store
        ).read_json("scores.json")
        tasks = [float(entry["score"]) for entry in scores["short"].values()]
        lengths = {
            f"RULER at {length}": statistics.fmean(float(e["score"]) for e in entries.values())
            for length, entries in scores["ruler"].items()
        }
        similarity = 100 * float(scores["similarity"]["last"])
        return {"short tasks": statistics.fmean(tasks), **lengths, "similarity x 100": similarity}

    found: dict[str, Any] = {"layer_scores": profile.read_json("drift.json")["attention_kl"]}
    found["original"], found["rescaled"] = (
        evaluate(name, model) for name, model in (("original", base), ("rescaled", extended))
    )
    for count in counts:
        selection = config.selection.model_copy(update={"num_distill_layers": count})
        layers = stages.select_layers(selection, profile, store=store)
        student = stages.train_student(
            config.training, "longred-c", base, extended, data, layers, store=store
        )
        chosen = layers.read_json("selection.json")["distill_layers"]
        found[str(count)] = {"distill_layers": chosen, **evaluate("longred-c", student)}
        print(config.seed, count, found[str(count)], flush=True)
    return found


def table(seeds: dict[str, Any], counts: Sequence[int]) -> str:
    """Return a Markdown page: means over the seeds by number of layers, and each rule's choice."""
    measures = list(next(iter(seeds.values()))["original"])
    lines = [
        f"| mean of {len(seeds)} seeds | {' | '.join(measures)} | mean of short and RULER |",
        "|---" + "|---:" * (len(measures) + 1) + "|",
    ]
    for name in ["original", "rescaled", *map(str, counts)]:
        means = {m: statistics.fmean(s[name][m] for s in seeds.values()) for m in measures}
        ruler = statistics.fmean(v for m, v in means.items() if m.startswith("RULER"))
        both = (means["short tasks"] + ruler) / 2
        label = f"{name} layers" if name.isdigit() else name
        cells = " | ".join(f"{means[m]:.2f}" for m in measures)
        lines.append(f"| {label} | {cells} | {both:.2f} |")
    lines += ["", "| rule | layers chosen, by seed |", "|---|---|"]
    for rule, choose in RULES.items():
        chosen = ", ".join(str(choose(s["layer_scores"])) for s in seeds.values())
        lines.append(f"| {rule} | {chosen} |")
    lines += ["", "Layer scores (attention KL, nats), decoder layers from 0:", ""]
    for seed, values in seeds.items():
        lines.append(f"- seed {seed}: {', '.join(f'{x:.4f}' for x in values['layer_scores'])}")
    return "\n".join(lines)


def main() -> None:
    """Run the ablation and write its JSON and Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--store", type=Path, default=Path("outputs/study"))
    parser.add_argument("--output", type=Path, default=Path("outputs/study/selection-auto"))
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value")
    arguments = parser.parse_args()
    seeds = {}
    for seed in arguments.seeds:
        config = load_recipe("demo", [*arguments.set, f"seed={seed}"])
        seeds[str(seed)] = run(config, arguments.counts, Store(arguments.store))
        text = table(seeds, arguments.counts)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        values = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "overrides": arguments.set,
            "seeds": seeds,
        }
        write_json(arguments.output.with_suffix(".json"), values)
        arguments.output.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
