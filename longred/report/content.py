"""Puts into words and numbers what the page says; how it looks is the template's affair."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from longred.report import provenance, tables
from longred.report.findings import findings
from longred.report.inputs import Inputs
from longred.report.samples import Unit, examples, frozen_prompts
from longred.report.scores import Comparison

NUM_EXAMPLES = 3


def page_content(title: str, inputs: Inputs, comparison: Comparison) -> dict[str, Any]:
    """Return what the page shows apart from the drawings, by the names the template uses."""
    method, baselines = inputs.method, inputs.baselines
    models = {**inputs.scores, **inputs.on_the_way}
    return {
        "title": title,
        "facts": _facts(inputs.recipe, inputs.trainings),
        "headlines": _headlines(comparison, method, baselines),
        "result": tables.result_table(comparison),
        "differences": tables.difference_table(comparison),
        "findings": findings(comparison, inputs.drift, method=method, baselines=baselines),
        "short_average": tables.short_average_words(comparison),
        "dropped": [
            {"task": label, "reason": reason} for label, reason in tables.dropped_lines(comparison)
        ],
        "reasons": _reasons(inputs.selection),
        "samples": sample_sections(comparison, inputs.scores, inputs.samples),
        "provenance": [
            {"title": "Models", "table": provenance.model_table(models, comparison.raw)},
            {"title": "Stages", "table": provenance.artifact_table(inputs.stages)},
            {"title": "Trainings", "table": provenance.training_table(inputs.trainings)},
        ],
        "environment": provenance.environment_lines(inputs.trainings),
        "recipe_text": yaml.safe_dump(
            dict(inputs.recipe), sort_keys=False, allow_unicode=True, width=100
        ),
    }


def _reasons(selection: Mapping[str, Any]) -> list[str]:
    """Return why so many layers are distilled, and why each of them."""
    texts = [selection["number_text"], *(entry["text"] for entry in selection["reasons"])]
    return [text[:1].upper() + text[1:] for text in texts]


def _facts(recipe: Mapping[str, Any], trainings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    extension: Mapping[str, Any] = recipe.get("extension", {})
    facts = {
        "recipe": str(recipe.get("name", tables.NOT_AVAILABLE)),
        "digest": provenance.recipe_digest(recipe),
        "window": f"{recipe['original_window']:,} → {recipe.get('target_window', 0):,} tokens",
    }
    if extension.get("method"):
        theta = extension.get("rope_theta")
        facts["RoPE"] = str(extension["method"]).upper() + (
            f", theta {theta:,.0f}" if theta else ""
        )
    tokens = [
        int(found["tokens"]) for found in trainings.values() if isinstance(found.get("tokens"), int)
    ]
    if tokens:
        facts["training tokens a method"] = f"{max(tokens):,}"
    facts["seed"] = str(recipe.get("seed", 0))
    return facts


def _headlines(
    comparison: Comparison, method: str, baselines: Sequence[str]
) -> list[dict[str, str]]:
    """Return the method's numbers to remember, each beside those of the baselines."""
    if method not in comparison.models:
        return []
    others = [name for name in [*baselines, "rescaled"] if name in comparison.models]

    def headline(label: str, text: Mapping[str, str]) -> dict[str, str]:
        note = ", ".join(f"{name} {text[name]}" for name in others)
        return {"value": text[method], "label": f"{method}: {label}", "note": note}

    models = comparison.models
    retention = {name: _percent(model["retention"]["short"]) for name, model in models.items()}
    found = [headline("short retention", retention)]
    if comparison.lengths:
        length = max(comparison.lengths)
        ruler = {
            name: _percent(model["ruler"][str(length)]["average"]) for name, model in models.items()
        }
        found.append(headline(f"RULER at {length:,} tokens", ruler))
    similarity = {name: tables.number(model["similarity"], 4) for name, model in models.items()}
    found.append(headline("similarity to the original", similarity))
    return found


def _percent(value: float | None) -> str:
    return tables.NOT_AVAILABLE if value is None else f"{value:.1f} %"


def sample_sections(
    comparison: Comparison, scores: Mapping[str, Path], samples: Path
) -> list[dict[str, Any]]:
    """Return a few samples of every unit; dropped ones too, since they show why."""
    units = [Unit(task) for task in comparison.short_tasks]
    units += [
        Unit(task, length) for length, tasks in comparison.ruler_tasks.items() for task in tasks
    ]
    units += [entry.unit for entry in comparison.dropped]
    found = []
    for unit in units:
        chosen = examples(scores, unit, NUM_EXAMPLES, frozen_prompts(samples, unit))
        if chosen:
            found.append({"label": unit.label(), "examples": chosen})
    return found
