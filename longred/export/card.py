"""Model card of an exported student: what it is, what was measured, and what was not."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from longred.export.serving import serve_commands, serving_notes
from longred.models.architectures import main_rope
from longred.models.find import is_hub_name
from longred.runs.record import RunRecord
from longred.store.artifacts import Artifact, read_json
from longred.store.journal import JOURNAL_NAME, Journal

KEPT_SHARE = 0.85
"""A length is usable if RULER keeps this share of the original's score at its own window."""


def model_card(
    run: RunRecord,
    method: str,
    trained: Artifact,
    model: PreTrainedModel,
    *,
    step: int | None = None,
) -> str:
    """Return README.md: metadata for the hub, and the run's own measurements.

    Args:
        run: run that trained the student.
        method: training method.
        trained: artifact of the training.
        model: the student.
        step: step at which the student was saved; None for the training's result.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    report = run.last_attempts().get("report")
    folder = Path(report.path) if report is not None and report.path else None
    rope = {"method": run.config["extension"]["method"], **main_rope(model.config)}
    rope["max_position_embeddings"] = model.config.max_position_embeddings
    loader = PackageLoader("longred.export", "")
    environment = Environment(  # noqa: S701 - the card is Markdown
        loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    text = environment.get_template("card.md").render(
        run=run,
        config=run.config,
        method=method,
        step=step,
        num_parameters=sum(weight.numel() for weight in model.parameters()),
        architecture=type(model).__name__,
        dtype=str(model.dtype).removeprefix("torch."),
        rope={key: _rope_value(value) for key, value in rope.items()},
        training=_training(run, trained, step),
        has_report=folder is not None,
        measurements=_measurements(run, method, folder, step),
        commands=serve_commands(model.config, Path("MODEL")),
        notes=serving_notes(model.config),
    )
    path = str(run.config["model"]["path"])
    data = ModelCardData(
        base_model=path if is_hub_name(path) else None,
        license=_license(Path(path)) or "other",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["long-context", "longred", method],
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{text}").content)


def _license(folder: Path) -> str | None:
    """Return the licence that the original's own card names, if its folder has a card."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    found = ModelCard.load(card, ignore_metadata_errors=True).data.get("license")
    return found if isinstance(found, str) else None


def _rope_value(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"{', '.join(f'{x:.4g}' for x in value[:4])}, … ({len(value)} numbers)"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _training(run: RunRecord, trained: Artifact, step: int | None) -> dict[str, Any]:
    training = read_json(trained.folder / "training.json")
    job, last = training["job"], training["num_steps"]
    rate = f"{job['learning_rate']}"
    if (schedule := job.get("schedule", "constant")) != "constant":
        rate += f", {schedule} to {job['min_learning_rate']}"
    sources = []
    for source in run.config["data"]["sources"]:
        revision = source.get("revision")
        at = f" at `{str(revision)[:12]}`" if revision else ""
        sources.append(f"{source.get('path') or source.get('name')}{at}")
    hardware = training.get("environment", {}).get("hardware", "unknown")
    return {
        "method": training["method"],
        "steps": f"{last:,}" if step is None else f"{step:,} of the training's {last:,}",
        "tokens": f"{training['tokens'] * (last if step is None else step) // last:,}",
        "text": _shares(job, int(run.config["data"]["short_length"])),
        "distilled hidden states": ", ".join(map(str, training.get("distill_layers") or []))
        or "none",
        "learning rate": rate,
        "optimizer": f"{job.get('optimizer', 'adamw')}; no earlier state was loaded: moments "
        f"started at 0, with {job.get('warmup_steps', 0):,} steps of warm-up",
        "seed": run.config.get("seed", 0),
        "hardware": f"{hardware}, {training['seconds']:,.0f} s",
        "data": ", ".join(sources),
    }


def _shares(job: Mapping[str, Any], short_length: int) -> str:
    """Return the share of each bucket in the tokens of a step, with the lengths of its blocks."""
    lengths = {
        "long": job["target_window"],
        "short": short_length,
        "original": job["original_window"],
    }
    tokens = {bucket: rows * lengths[bucket] for bucket, rows in job["rows"].items()}
    whole = sum(tokens.values())
    return ", ".join(
        f"{tokens[bucket] / whole:.1%} {bucket} (blocks of {length:,} tokens)"
        for bucket, length in lengths.items()
        if bucket in tokens
    )


def _measurements(
    run: RunRecord, method: str, report: Path | None, step: int | None
) -> dict[str, str]:
    """Return the report's table, and the usable length or the measurements of a saved step."""
    if report is None or not (report / "table.md").is_file():
        return {}
    table = (report / "table.md").read_text(encoding="utf-8").strip()
    found = {"table": re.sub(r"^#", "###", table, flags=re.MULTILINE)}
    if step is None:
        scores = read_json(report / "scores.json")
        return found | {"reach": usable_length(scores, method, run.config)}
    own = {
        line["key"].rpartition("/")[2]: float(line["value"])
        for line in Journal(report / JOURNAL_NAME).read()
        if line["key"].startswith(f"{method}/by_step/") and line["step"] == step
    }
    words = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in own.items())
    return found | {"own": words or "none"}


def usable_length(scores: Mapping[str, Any], method: str, config: Mapping[str, Any]) -> str:
    """Return a sentence on the longest length at which RULER keeps its score."""
    window = str(config["original_window"])
    rulers = [scores.get(name, {}).get("ruler", {}) for name in ("original", method)]
    basis = (rulers[0].get(window) or {}).get("average")
    averages = {int(n): values.get("average") for n, values in rulers[1].items()}
    if not basis or not averages:
        return "RULER was not measured at the original's window, so no usable length is claimed."
    good = [n for n, score in averages.items() if score is not None and score >= KEPT_SHARE * basis]
    kept = f"{KEPT_SHARE:.0%} of the original's {basis:.1f} at {int(window):,} tokens"
    reach = f"At no measured length does RULER reach {kept}."
    if good:
        reach = f"{max(good):,} tokens is the longest measured length at which RULER keeps {kept}."
    return f"{reach} Measured lengths: {', '.join(f'{n:,}' for n in sorted(averages))}."
