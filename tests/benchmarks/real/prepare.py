"""Prepare what the GPU machine cannot make: text as tokens, frozen samples, configurations."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from longred.config import RunConfig
from longred.errors import ConfigError
from longred.evaluation.model import is_chat
from longred.evaluation.samples import DOCUMENTS
from longred.evaluation.suites import SuiteTask
from longred.evaluation.tasks import read_lines, read_tasks, write_lines
from longred.method.job import TrainingJob
from longred.models.folder import weight_files
from longred.models.load import load_config, load_model, resolve_model, save_model
from longred.stages.data import prepare_data
from longred.stages.evaluation import freeze_samples
from longred.stages.model import extend_model, find_model
from longred.store.artifacts import MANIFEST as ARTIFACT_MANIFEST
from longred.store.artifacts import Artifact, Store
from real import short
from real.parts import pack
from real.recipe import METHODS, config_of, short_tasks

NO_FOLDER = "."
"""Stands for folders that only the measuring machine knows."""


def prepare(chosen: argparse.Namespace) -> Path:
    """Write the parts and their manifest into `chosen.output`; return the manifest.

    Intermediate results are kept in `store` beside the parts and reused; they need not travel.

    Raises:
        LongredError: the model, the text or a task cannot be used.
    """
    work = chosen.output / "store"
    source = resolve_model(chosen.model)
    model = _in_bfloat16(source, work / "model")
    own, others = short_tasks(chosen)
    suite = _write_suite(own, work / "suite.yaml")
    config = config_of(chosen, model, suite, [task.name for task in own])
    store = Store(work)
    base = find_model(config.model, config.selection, store=store)
    print("data …", flush=True)
    data = prepare_data(config.data, base, store=store)
    extended = extend_model(config.extension, base, store=store)
    print("samples …", flush=True)
    samples = freeze_samples(config.evaluation, base, data, store=store)
    requests = _freeze_requests(others, config, work / "requests")
    files = {
        **_files(base, "model"),
        **_files(extended, "extended"),
        **_files(data, "data", without=(DOCUMENTS,)),
        **_files(samples, "samples"),
        **{f"requests/{path.name}": path for path in sorted((work / "requests").glob("*.jsonl"))},
    }
    evaluation = config.evaluation
    values = {
        "model": chosen.name or source.name,
        "original_window": config.original_window,
        "target_window": config.target_window,
        "lengths": evaluation.ruler.lengths,
        "ruler": evaluation.ruler.tasks,
        "num_steps": config.training.num_steps,
        "batch_rows": config.profiling.batch_rows,
        "first_samples": min(chosen.first_samples, chosen.samples),
        "samples": chosen.samples,
        "num_bins": evaluation.perplexity.num_bins,
        "loss_tokens": evaluation.perplexity.num_tokens,
        "similarity_tokens": evaluation.similarity_tokens,
        "selection": {
            "strategy": config.selection.strategy,
            "num_distill_layers": config.selection.num_distill_layers,
        },
        "is_chat": is_chat(evaluation.chat_template, model),
        "requests": requests,
        "short_tokens": _short_tokens(samples, requests, work / "requests"),
        "jobs": {method: _job(config, method, base, data).to_json() for method in METHODS},
    }
    return pack(files, chosen.output, values, part_bytes=chosen.part_bytes)


def _in_bfloat16(source: Path, folder: Path) -> Path:
    """Write the model with bfloat16 weights, once for each model."""
    mark = folder / "generation_config.json"
    if not mark.is_file() or not weight_files(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_model(load_model(source, dtype=torch.bfloat16), source, folder)
    return folder


def _write_suite(tasks: list[SuiteTask], path: Path) -> Path:
    """Write a suite of longred's own tasks."""
    capacities: dict[str, dict[str, Any]] = {}
    for task in tasks:
        values = {"task": task.task or task.name, "metric": task.metric, "chance": task.chance}
        capacities.setdefault(task.capacity, {})[task.name] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"source": "local", "capacities": capacities}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def _freeze_requests(tasks: list[SuiteTask], config: RunConfig, folder: Path) -> dict[str, Any]:
    """Freeze the tasks of lm-eval as plain requests; return their entries in the manifest."""
    entries: dict[str, Any] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jsonl"):
        old.unlink()
    for task in tasks:
        from longred.evaluation.lm_eval_catalog import leaf_settings

        limit = config.evaluation.short.num_samples
        leaves = leaf_settings(task, limit=limit, allow_code=False)
        rows = [row for settings in leaves.values() for row in short.freeze(settings)]
        if not rows:
            raise ConfigError(f"{task.name}: has no samples")
        write_lines(folder / f"{task.name}.jsonl", rows)
        entries[task.name] = {"chance": task.chance, "num_samples": len(rows)}
    return entries


def _short_tokens(samples: Artifact, requests: Mapping[str, Any], folder: Path) -> int:
    """Return about how many tokens the short sets read: a token has four characters in the mean."""
    tasks = [task for task in read_tasks(samples.folder) if task.kind == "short"]
    own = (
        len(row["input"]) * len(row.get("choices", " ")) // 4
        for task in tasks
        for row in task.read_samples()
    )
    others = (
        len("".join(pair)) // 4
        for name in requests
        for row in read_lines(folder / f"{name}.jsonl")
        for pair in row["requests"]
    )
    return sum(own) + sum(others)


def _files(artifact: Artifact, name: str, without: tuple[str, ...] = ()) -> Mapping[str, Path]:
    """Return the files of an artifact by their path after joining."""
    root = artifact.folder
    paths = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    left_out = {ARTIFACT_MANIFEST, *without}
    return {f"{name}/{key}": path for key, path in paths.items() if key not in left_out}


def _job(config: RunConfig, method: str, base: Artifact, data: Artifact) -> TrainingJob:
    """Return a training as the training stage would run it, without folders and layers."""
    training = config.training
    recipe = training.recipe(method)
    values = {**training.digest_values(), **training.runtime_values(), "method": method}
    values["sigma"] = training.sigma or recipe.sigma
    # Layers are selected where the profile is measured; the last one is always among them.
    last = int(load_config(base.folder).num_hidden_layers)
    return TrainingJob(
        **{name: value for name, value in values.items() if name in TrainingJob.fields()},
        teacher_folder=NO_FOLDER,
        student_folder=NO_FOLDER,
        data_folder=NO_FOLDER,
        data_digest=data.digest,
        distill_layers=(last,) if recipe.uses_layers() else (),
        rows=training.rows(method),
    )
