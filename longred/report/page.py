"""Content of the HTML page, and the page: one file without scripts, fonts or external images."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from longred import __version__
from longred.config import EvaluationConfig
from longred.method.rope import ROPE_METHODS
from longred.report import glossary, tables
from longred.report.findings import findings, restoration_findings
from longred.report.inputs import Inputs, date_words
from longred.report.left_out import entries_of
from longred.report.names import RESCALED
from longred.report.plots import Plot, inline_svg
from longred.report.restoration import Correlation, Point
from longred.report.samples import examples, frozen_prompts
from longred.report.scores import Comparison
from longred.report.text_table import NOT_AVAILABLE
from longred.store.artifacts import DIGEST_LENGTH, canonical_digest

PROMPT_START, PROMPT_END = 500, 900
NUM_EXAMPLES = 3


def run_content(
    title: str,
    inputs: Inputs,
    comparison: Comparison,
    points: Sequence[Point],
    correlation: Correlation | None,
) -> dict[str, Any]:
    """Return the texts and tables of a run's report, by the template's names."""
    models = {**inputs.scores, **inputs.saved_students}
    claims = findings(
        comparison, inputs.drift, method=inputs.method, baselines=inputs.baselines
    ) + restoration_findings(points, correlation)
    environments = [training.get("environment") for training in inputs.trainings.values()]
    reasons = [entry["text"] for entry in inputs.selection["reasons"]]
    reasons.insert(0, inputs.selection["number_text"])
    return _common(title, comparison, inputs.scores, inputs.samples) | {
        "intro": glossary.window_text(inputs.recipe),
        "facts": _facts(inputs),
        "headlines": _headlines(inputs, comparison),
        "findings": claims,
        "reasons": [text[:1].upper() + text[1:] for text in reasons],
        "provenance": [
            ("Models", tables.model_table(models, comparison.raw)),
            ("Stages", tables.stage_table(inputs.stages)),
            ("Trainings", tables.training_table(inputs.trainings)),
        ],
        "environment": dict.fromkeys(
            f"{key}: {value}"
            for environment in environments
            if isinstance(environment, Mapping)
            for key, value in environment.items()
        ),
        "recipe_text": yaml.safe_dump(
            dict(inputs.recipe), sort_keys=False, allow_unicode=True, width=100
        ),
    }


def evaluation_content(
    config: EvaluationConfig,
    folders: Mapping[str, Path],
    samples: Path,
    comparison: Comparison,
    sources: Mapping[str, str],
) -> dict[str, Any]:
    """Return the texts and tables of an evaluation outside of a run, by the template's names.

    `sources` says what each model is: a folder or a hub name, with the commit.
    """
    facts = {
        "date": date_words(time.time()),
        "longred": __version__,
        **{f"model {name}": source for name, source in sources.items()},
        "suite": config.short.suite,
        "original window": f"{config.original_window:,} tokens",
        "dtype": config.dtype,
        "seed": str(config.seed),
    }
    if len(folders) > 1:
        facts["similarity to"] = next(iter(folders))
    if config.ruler.tasks:
        lengths = ", ".join(f"{length:,}" for length in sorted(set(config.ruler.lengths)))
        facts["RULER"] = f"{config.ruler.num_samples} samples per task at {lengths} tokens"
    values = {"evaluation": config.model_dump(mode="json")}
    title = f"Evaluation of {', '.join(folders)}"
    return _common(title, comparison, folders, samples) | {
        "facts": facts,
        "provenance": [("Models", tables.model_table(folders, comparison.raw))],
        "recipe_text": yaml.safe_dump(values, sort_keys=False, width=100),
    }


def _common(
    title: str, comparison: Comparison, folders: Mapping[str, Path], samples: Path
) -> dict[str, Any]:
    """Return what all pages share; dropped tasks have samples too, since these show the reason."""
    units = comparison.short_units() + comparison.ruler_units() + comparison.v2_units()
    units += [entry.unit for entry in comparison.dropped]
    chosen = {
        comparison.label(unit): examples(folders, unit, NUM_EXAMPLES, frozen_prompts(samples, unit))
        for unit in units
        # A skipped task may have no samples.
        if entries_of(comparison.raw.values(), unit)
    }
    sections = ("intro", "headlines", "findings", "reasons", "environment")
    empty_sections = dict.fromkeys(sections)
    summary = tables.summary_table(comparison)
    return empty_sections | {
        "title": title,
        "result": summary,
        "short_tasks": tables.short_task_table(comparison),
        "model_terms": glossary.model_terms(comparison.models),
        "column_terms": glossary.column_terms(summary.header, comparison.text),
        "ruler_terms": glossary.ruler_terms(comparison),
        "unparsed": tables.unparsed_lines(comparison),
        "truncated": tables.truncated_lines(comparison),
        "skipped": tables.skipped_lines(comparison),
        "dropped": tables.dropped_lines(comparison),
        "differences": tables.difference_table(comparison),
        "samples": {label: found for label, found in chosen.items() if found},
    }


def _facts(inputs: Inputs) -> dict[str, str]:
    recipe = inputs.recipe
    extension: Mapping[str, Any] = recipe.get("extension", {})
    made_by = inputs.made_by
    facts = {}
    if made_by is not None:
        facts = {"run": made_by.run, "date": made_by.date, "model": made_by.model}
    facts |= {
        "longred": __version__,
        "recipe": str(recipe.get("name", NOT_AVAILABLE)),
        "digest": canonical_digest(json.loads(json.dumps(recipe)))[:DIGEST_LENGTH],
        "window": f"{recipe['original_window']:,} → {recipe.get('target_window', 0):,} tokens",
    }
    if extension.get("method"):
        theta = extension.get("rope_theta")
        title = ROPE_METHODS[extension["method"]].title
        facts["RoPE"] = title + (f", theta {theta:,.0f}" if theta else "")
    trainings = inputs.trainings.values()
    tokens = [each["tokens"] for each in trainings if isinstance(each.get("tokens"), int)]
    if tokens:
        facts["training tokens per method"] = f"{max(tokens):,}"
    facts["seed"] = str(inputs.seed)
    return facts


def _headlines(inputs: Inputs, comparison: Comparison) -> list[dict[str, str]]:
    """Return the method's main numbers, each with those of the baselines."""
    method, models = inputs.method, comparison.models
    if method not in models:
        return []

    def percent(value: float | None) -> str:
        return NOT_AVAILABLE if value is None else f"{value:.1f} %"

    measures: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "short retention": lambda model: percent(model["retention"]["short"])
    }
    if comparison.lengths:
        length = max(comparison.lengths)
        measures[f"RULER at {length:,} tokens"] = lambda model: percent(
            model["ruler"][str(length)]["average"]
        )
    measures["similarity to the original"] = lambda model: tables.number(model["similarity"], 4)
    others = [name for name in [*inputs.baselines, RESCALED] if name in models]
    return [
        {
            "value": read(models[method]),
            "label": f"{method}: {label}",
            "note": ", ".join(f"{name} {read(models[name])}" for name in others),
        }
        for label, read in measures.items()
    ]


def render(content: Mapping[str, Any], plots: Sequence[Plot]) -> str:
    """Return the page as HTML; all texts are escaped, only the SVGs are inserted as markup.

    Args:
        content: from `run_content` or `evaluation_content`.
        plots: the figures with captions and tables.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(shortened=_shortened, breakable=glossary.breakable)
    drawings = [(plot, inline_svg(plot)) for plot in plots]
    return environment.get_template("page.html").render(content, plots=drawings)


def _shortened(text: str) -> str:
    """Return start and end of a long prompt, with the number of characters between them."""
    omitted = len(text) - PROMPT_START - PROMPT_END
    if omitted <= 200:
        return text
    return f"{text[:PROMPT_START]}\n\n[… {omitted:,} characters omitted …]\n\n{text[-PROMPT_END:]}"
