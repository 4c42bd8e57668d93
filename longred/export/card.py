"""The model card of an exported student: what it is, what was measured, and what was not."""

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
"""A length counts as usable where RULER keeps this part of the original's score at its window."""


def model_card(
    run: RunRecord,
    method: str,
    trained: Artifact,
    model: PreTrainedModel,
    *,
    step: int | None = None,
) -> str:
    """Return README.md: the metadata that the hub reads, and the run's own measurements.

    Args:
        run: the run that trained the student.
        method: how.
        trained: the training's artifact.
        model: the student.
        step: where it was kept on the way; None for the training's result.
    """
    training = read_json(trained.folder / "training.json")
    report = run.last_attempts().get("report")
    folder = Path(report.path) if report is not None and report.path else None
    parts = [
        _introduction(run, method, model),
        _rope_table(run, model),
        _training_table(run, training, step),
        _measurements(run, method, folder, step),
        _limits(run, method, folder),
        _serving(model, run, method),
    ]
    data = _metadata(run, method)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n" + "\n\n".join(parts) + "\n")
    return str(card.content)


def _metadata(run: RunRecord, method: str) -> ModelCardData:
    path = str(run.config["model"]["path"])
    base = _HUB_NAME.fullmatch(path) and not Path(path).exists()
    return ModelCardData(
        base_model=path if base else None,
        license=_license(Path(path)) or "other",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["long-context", "longred", method],
    )


def _license(folder: Path) -> str | None:
    """Return the licence that the original's own card names, where its folder has one."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    found = ModelCard.load(card, ignore_metadata_errors=True).data.get("license")
    return found if isinstance(found, str) else None


def _introduction(run: RunRecord, method: str, model: PreTrainedModel) -> str:
    config, recipe = run.config, str(run.config.get("name", run.recipe))
    original, target = config["original_window"], config["target_window"]
    revision = config["model"].get("revision")
    at = f" at revision `{revision}`" if revision else ""
    size = sum(weight.numel() for weight in model.parameters())
    return (
        f"# {recipe}, {method}\n\n"
        f"`{config['model']['path']}`{at} with its window extended from {original:,} to "
        f"{target:,} tokens: {size / 1e6:,.1f} M parameters, {type(model).__name__}, "
        f"weights in {str(model.dtype).removeprefix('torch.')}. Made by longred, run `{run.id}`. "
        "The licence of the original model applies."
    )


def _rope_table(run: RunRecord, model: PreTrainedModel) -> str:
    rows = {"method": run.config["extension"]["method"], **main_rope(model.config)}
    rows["max_position_embeddings"] = model.config.max_position_embeddings
    lines = [f"| {key} | {_short(value)} |" for key, value in rows.items()]
    return "\n".join(["## Window and RoPE", "", "| key | value |", "|---|---|", *lines])


def _training_table(run: RunRecord, training: Mapping[str, Any], step: int | None) -> str:
    environment = training.get("environment", {})
    layers = training.get("distill_layers") or []
    last = training["num_steps"]
    done = last if step is None else step
    rows = {
        "method": training["method"],
        "steps": f"{last:,}" if step is None else f"{step:,} of the training's {last:,}",
        "tokens": f"{training['tokens'] * done // last:,}",
        "distilled hidden states": ", ".join(map(str, layers)) or "none",
        "learning rate": _schedule(training["job"]),
        "optimizer": training["job"].get("optimizer", "adamw"),
        "seed": run.config.get("seed", 0),
        "hardware": f"{environment.get('hardware', 'unknown')}, {training['seconds']:,.0f} s",
        "data": ", ".join(_source(source) for source in run.config["data"]["sources"]),
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *lines])


def _measurements(run: RunRecord, method: str, report: Path | None, step: int | None) -> str:
    if report is None or not (report / "table.md").is_file():
        return "## Measured\n\nNothing was measured in this run."
    table = (report / "table.md").read_text(encoding="utf-8").strip()
    text = re.sub(r"^#", "###", table, flags=re.MULTILINE)
    reach = usable_length(read_json(report / "scores.json"), method, run.config)
    if step is not None:
        reach = _on_the_way(report, method, step)
    return (
        f"## Measured\n\nAll models of this run answered the same frozen samples under one "
        f"configuration. {reach}\n\n{text}"
    )


def _on_the_way(report: Path, method: str, step: int) -> str:
    """Say what was measured of a student that was kept on the way, in words."""
    found = {
        line["key"].rpartition("/")[2]: float(line["value"])
        for line in Journal(report / JOURNAL_NAME).read()
        if line["key"].startswith(f"{method}/by_step/") and line["step"] == step
    }
    own = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in found.items())
    return (
        f"This folder holds the student of {method} after step {step}, and the table is of the "
        f"finished ones. Of this one was measured: {own or 'nothing'}."
    )


def usable_length(scores: Mapping[str, Any], method: str, config: Mapping[str, Any]) -> str:
    """Say up to which length RULER keeps its score, in words."""
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
        f"{basis:.1f} at {int(window):,}; measured were "
        f"{', '.join(f'{n:,}' for n in sorted(averages))}."
    )


def _limits(run: RunRecord, method: str, report: Path | None) -> str:
    evaluation = run.config.get("evaluation", {})
    ruler, short = evaluation.get("ruler", {}), evaluation.get("short", {})
    lines = ["One training with one seed: differences within the intervals above may be chance."]
    if report is not None:
        lines += [
            f"RULER means the tasks {', '.join(ruler.get('tasks', []))} here, "
            f"{ruler.get('num_samples')} samples each, up to {max(ruler['lengths']):,} tokens; "
            "synthetic tasks do not show that a document of that length is understood.",
            f"Short text was measured by the suite `{short.get('suite')}`, "
            f"{short.get('num_samples')} samples a task, and by nothing else.",
        ]
    lines.append("Safety, bias and languages other than those of the data were not measured.")
    return "\n".join(["## Limits", "", *(f"- {line}" for line in lines)])


def _serving(model: PreTrainedModel, run: RunRecord, method: str) -> str:
    commands = serve_commands(model.config, Path("MODEL"))
    lines = [f"# {name}\n" + "\n".join(lines) for name, lines in commands.items()]
    notes = [f"- {note}." for note in serving_notes(model.config)]
    return "\n".join(["## Use", "", "```sh", *lines, "```", *notes])


def _source(source: Mapping[str, Any]) -> str:
    revision = source.get("revision")
    at = f" at `{str(revision)[:12]}`" if revision else ""
    return f"{source.get('path') or source.get('name')}{at}"


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"{', '.join(f'{x:.4g}' for x in value[:4])}, … ({len(value)} numbers)"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _schedule(job: Mapping[str, Any]) -> str:
    rate, name = job["learning_rate"], job.get("schedule", "constant")
    if name == "constant":
        return f"{rate}"
    return f"{rate}, {name} to {job['min_learning_rate']}"
