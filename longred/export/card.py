"""Model card of an exported student: what it is, what was measured, and what was not."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from longred.export.serving import serve_commands, serving_notes
from longred.models.architectures import main_rope
from longred.runs.record import RunRecord
from longred.store.artifacts import Artifact, read_json
from longred.store.journal import JOURNAL_NAME, Journal

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
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
    report = run.last_attempts().get("report")
    folder = Path(report.path) if report is not None and report.path else None
    rope = {"method": run.config["extension"]["method"], **main_rope(model.config)}
    rope["max_position_embeddings"] = model.config.max_position_embeddings
    rows = {key: _rope_value(value) for key, value in rope.items()}
    parts = [
        _introduction(run, method, model),
        _table("Window and RoPE", "| key | value |", rows),
        _table("Training", "| | |", _training(run, trained, step)),
        _measurements(run, method, folder, step),
        _limits(run, folder),
        _serving(model),
    ]
    path = str(run.config["model"]["path"])
    is_hub_name = _HUB_NAME.fullmatch(path) and not Path(path).exists()
    data = ModelCardData(
        base_model=path if is_hub_name else None,
        license=_license(Path(path)) or "other",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["long-context", "longred", method],
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n" + "\n\n".join(parts) + "\n")
    return str(card.content)


def _license(folder: Path) -> str | None:
    """Return the licence that the original's own card names, if its folder has a card."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    found = ModelCard.load(card, ignore_metadata_errors=True).data.get("license")
    return found if isinstance(found, str) else None


def _introduction(run: RunRecord, method: str, model: PreTrainedModel) -> str:
    config, recipe = run.config, str(run.config.get("name", run.recipe))
    revision = config["model"].get("revision")
    at = f" at revision `{revision}`" if revision else ""
    size = sum(weight.numel() for weight in model.parameters())
    return (
        f"# {recipe}, {method}\n\n"
        f"`{config['model']['path']}`{at} with its context window extended from "
        f"{config['original_window']:,} to {config['target_window']:,} tokens. "
        f"{size / 1e6:,.1f} M parameters, {type(model).__name__}, weights in "
        f"{str(model.dtype).removeprefix('torch.')}. Trained by longred, run `{run.id}`. The "
        "licence of the original model applies."
    )


def _table(title: str, header: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join([f"## {title}", "", header, "|---|---|", *lines])


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
        "distilled hidden states": ", ".join(map(str, training.get("distill_layers") or []))
        or "none",
        "learning rate": rate,
        "optimizer": job.get("optimizer", "adamw"),
        "seed": run.config.get("seed", 0),
        "hardware": f"{hardware}, {training['seconds']:,.0f} s",
        "data": ", ".join(sources),
    }


def _measurements(run: RunRecord, method: str, report: Path | None, step: int | None) -> str:
    if report is None or not (report / "table.md").is_file():
        return "## Measurements\n\nNothing was measured in this run."
    if step is None:
        reach = usable_length(read_json(report / "scores.json"), method, run.config)
    else:
        found = {
            line["key"].rpartition("/")[2]: float(line["value"])
            for line in Journal(report / JOURNAL_NAME).read()
            if line["key"].startswith(f"{method}/by_step/") and line["step"] == step
        }
        own = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in found.items())
        reach = (
            f"This folder holds the student of {method} after step {step}; the table lists the "
            f"final students. Measurements of this student: {own or 'none'}."
        )
    table = (report / "table.md").read_text(encoding="utf-8").strip()
    text = re.sub(r"^#", "###", table, flags=re.MULTILINE)
    return (
        "## Measurements\n\nAll models of this run were evaluated on the same frozen samples under "
        f"one configuration. {reach}\n\n{text}"
    )


def usable_length(scores: Mapping[str, Any], method: str, config: Mapping[str, Any]) -> str:
    """Return a sentence on the longest length at which RULER keeps its score."""
    window = str(config["original_window"])
    rulers = [scores.get(name, {}).get("ruler", {}) for name in ("original", method)]
    basis = (rulers[0].get(window) or {}).get("average")
    averages = {int(n): values.get("average") for n, values in rulers[1].items()}
    if not basis or not averages:
        return "RULER was not measured at the original's window, so no usable length is claimed."
    good = [n for n, score in averages.items() if score is not None and score >= KEPT_SHARE * basis]
    longest = f"{max(good):,} tokens is the longest" if good else "None is a"
    return (
        f"{longest} measured length at which RULER keeps {KEPT_SHARE:.0%} of the original's "
        f"{basis:.1f} at {int(window):,}. Measured lengths: "
        f"{', '.join(f'{n:,}' for n in sorted(averages))}."
    )


def _limits(run: RunRecord, report: Path | None) -> str:
    evaluation = run.config.get("evaluation", {})
    ruler, short = evaluation.get("ruler", {}), evaluation.get("short", {})
    lines = [
        "One training with one seed: differences within the intervals above may be due to chance."
    ]
    if report is not None:
        lines += [
            f"RULER means the tasks {', '.join(ruler.get('tasks', []))} here, with "
            f"{ruler.get('num_samples')} samples each, up to {max(ruler['lengths']):,} tokens; "
            "synthetic tasks do not show that the model understands documents of that length.",
            f"Short text was measured only by the suite `{short.get('suite')}`, with "
            f"{short.get('num_samples')} samples per task.",
        ]
    lines.append("Safety, bias and languages other than those of the data were not measured.")
    return "\n".join(["## Limits", "", *(f"- {line}" for line in lines)])


def _serving(model: PreTrainedModel) -> str:
    commands = serve_commands(model.config, Path("MODEL"))
    lines = [f"# {name}\n" + "\n".join(lines) for name, lines in commands.items()]
    notes = [f"- {note}." for note in serving_notes(model.config)]
    return "\n".join(["## Use", "", "```sh", *lines, "```", *notes])
