"""Runs one model through everything that is asked; a killed run repeats at most one unit."""

import logging
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from longred.artifacts import MANIFEST, folder_digest, read_json, write_json
from longred.attention import ATTENTION_NAME
from longred.config import EvaluationConfig
from longred.data.loader import read_rows
from longred.errors import MismatchError
from longred.evaluation.perplexity import held_out_loss
from longred.evaluation.samples import read_documents, tokenizer_sha256
from longred.evaluation.units import Unit, read_index, read_units, write_lines
from longred.models import choose_device, load_model, load_tokenizer
from longred.progress import Progress
from longred.tracking import Journal

logger = logging.getLogger(__name__)


class Subject:
    """The model under evaluation, loaded when the first unit that is not finished needs it.

    Args:
        config: what is asked.
        folder: its model folder.
        original: the original model's folder.
        max_tokens: the longest prompt with its answer.
    """

    def __init__(
        self, config: EvaluationConfig, folder: Path, original: Path, *, max_tokens: int
    ) -> None:
        self.config, self.folder, self.original = config, folder, original
        self.max_tokens = max_tokens
        self.device = choose_device(config.device)

    def load(self, folder: Path, attention: str = ATTENTION_NAME) -> Any:
        """Return a model on the device of the evaluation."""
        return load_model(
            folder,
            dtype=getattr(torch, self.config.dtype),
            device=self.device,
            attention=attention,
            original=self.original,
            backend=self.config.attention_backend,
        )

    def release(self) -> None:
        """Let go of the model, so that others have room."""
        for name in ("examinee", "model"):
            self.__dict__.pop(name, None)

    @cached_property
    def model(self) -> Any:
        """The model, with the attention that takes padding."""
        return self.load(self.folder, "sdpa")

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return load_tokenizer(self.folder)

    @cached_property
    def examinee(self) -> Any:
        """The model as lm-eval sees it."""
        from longred.evaluation.benchmarks import examinee

        return examinee(
            self.model,
            self.tokenizer,
            max_tokens=self.max_tokens,
            batch_size=self.config.batch_size,
        )


def evaluate(
    config: EvaluationConfig,
    name: str,
    model_folder: Path,
    original_folder: Path,
    samples_folder: Path,
    data_folder: Path,
    folder: Path,
    work: Path,
    *,
    on_progress: Progress | None = None,
) -> None:
    """Write a model's `scores.json`, `samples/` and `metrics.jsonl`.

    Each unit (a task at a length, the similarity, the loss) is committed to `work` when finished
    and not done again. Scores are percentages; standard errors are those of their means.

    Args:
        config: what is asked.
        name: the model's name in tables.
        model_folder: the model.
        original_folder: the original model, that similarity is measured to.
        samples_folder: frozen samples.
        data_folder: folder of a data artifact.
        folder: existing folder that receives the result.
        work: existing folder for progress.
        on_progress: called with units done, units in all, and what was done.

    Raises:
        MismatchError: samples and model have different tokenizers, or files were changed.
    """
    _check_tokenizer(model_folder, samples_folder)
    units = read_units(samples_folder)
    max_tokens = max(unit.max_tokens for unit in units)
    subject = Subject(config, model_folder, original_folder, max_tokens=max_tokens)
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        unit.key: lambda unit=unit: _ask(subject, unit)  # type: ignore[misc]
        for unit in units
    }
    steps["held_out"] = lambda: _held_out(subject, data_folder)
    steps["similarity"] = lambda: _similarity(subject, original_folder, data_folder)
    results: dict[str, dict[str, Any]] = {}
    for number, (key, make) in enumerate(steps.items(), start=1):
        path = work / "units" / f"{key}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, make())
        results[key] = read_json(path)
        if on_progress:
            on_progress(number, len(steps), f"{name}: {key}")
    _write(name, _checkpoint(model_folder), units, results, folder)


def _check_tokenizer(model_folder: Path, samples_folder: Path) -> None:
    if tokenizer_sha256(model_folder) != read_index(samples_folder)["tokenizer_sha256"]:
        raise MismatchError(
            f"{samples_folder}: the samples were frozen for another tokenizer than that of "
            f"{model_folder}; models that are compared share their tokenizer"
        )


def _checkpoint(model_folder: Path) -> str:
    manifest = model_folder / MANIFEST
    return str(read_json(manifest)["digest"]) if manifest.is_file() else folder_digest(model_folder)


def _ask(subject: Subject, unit: Unit) -> dict[str, Any]:
    from longred.evaluation.benchmarks import ask

    answers = ask(subject.examinee, unit)
    return {"score": summary([a["score"] for a in answers], unit.chance), "answers": answers}


def summary(scores: list[float], chance: float) -> dict[str, Any]:
    """Return the mean of percentages, its standard error, their number and what guessing scores.

    For scores of 0 and 100 the error is the binomial one, the square root of p (1 - p) / n.
    """
    count = len(scores)
    mean = sum(scores) / count
    variance = sum((score - mean) ** 2 for score in scores) / count
    stderr = math.sqrt(variance / count)
    return {"score": mean, "stderr": stderr, "num_samples": count, "chance": chance}


def _similarity(subject: Subject, original_folder: Path, data_folder: Path) -> dict[str, Any]:
    from longred.profiling.drift import hidden_similarity

    subject.release()
    rows_NT = read_rows(
        data_folder, "short", split="held_out", num_tokens=subject.config.similarity_tokens
    )
    per_layer = hidden_similarity(
        subject.load(original_folder),
        subject.load(subject.folder),
        rows_NT,
        batch_rows=subject.config.batch_size,
    )
    return {
        "per_layer": per_layer,
        "last": per_layer[-1],
        "mean": sum(per_layer) / len(per_layer),
        "num_tokens": rows_NT.numel(),
    }


def _held_out(subject: Subject, data_folder: Path) -> dict[str, Any]:
    return held_out_loss(
        subject.model,
        subject.tokenizer,
        [text for _, text in read_documents(data_folder)],
        window=subject.config.original_window,
        num_tokens=subject.config.similarity_tokens,
        batch_rows=subject.config.batch_size,
    )


def _write(
    name: str,
    checkpoint: str,
    units: list[Unit],
    results: dict[str, dict[str, Any]],
    folder: Path,
) -> None:
    short: dict[str, Any] = {}
    ruler: dict[str, dict[str, Any]] = {}
    journal = Journal(folder / "metrics.jsonl")
    for unit in units:
        score = results[unit.key]["score"]
        group = short if unit.length is None else ruler.setdefault(str(unit.length), {})
        group[unit.task] = score | ({"capacity": unit.capacity} if unit.capacity else {})
        write_lines(folder / "samples" / f"{unit.key}.jsonl", results[unit.key]["answers"])
        journal.append({f"{unit.kind}/{unit.task}": score["score"]}, step=unit.length or 0)
    similarity, held_out = results["similarity"], results["held_out"]
    journal.append(
        {
            "similarity/last": similarity["last"],
            "similarity/mean": similarity["mean"],
            "held_out/nats_per_token": held_out["nats_per_token"],
            "held_out/bits_per_byte": held_out["bits_per_byte"],
        },
        step=0,
    )
    journal.close()
    write_json(
        folder / "scores.json",
        {
            "model": name,
            "checkpoint": checkpoint,
            "short": short,
            "ruler": ruler,
            "similarity": similarity,
            "nats_per_token": held_out["nats_per_token"],
            "bits_per_byte": held_out["bits_per_byte"],
        },
    )
