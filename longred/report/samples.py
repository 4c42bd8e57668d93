"""Reads what each model answered to each sample, for intervals and for a reader's own eyes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longred.errors import MismatchError
from longred.evaluation.tasks import read_lines
from longred.report.intervals import Floats


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """A task as it was asked: a short task, or a RULER task at one length in tokens."""

    task: str
    length: int | None = None

    def label(self) -> str:
        """Return the name that a reader sees."""
        return self.task if self.length is None else f"{self.task} at {self.length:,} tokens"

    def path(self, folder: Path) -> Path:
        """Return the file of per-sample scores in one model's evaluation folder."""
        name = f"short-{self.task}" if self.length is None else f"ruler-{self.task}-{self.length}"
        return folder / "samples" / f"{name}.jsonl"


def frozen_prompts(folder: Path, unit: Unit) -> dict[str, str]:
    """Return the prompts of a unit by sample id.

    Args:
        folder: the frozen samples that the models were asked.
        unit: the task.

    Raises:
        MismatchError: the folder does not hold the unit, or a line is not a JSON object.
    """
    group, name = (
        ("short", unit.task) if unit.length is None else ("ruler", f"{unit.task}-{unit.length}")
    )
    # A task of lm-eval has a folder of its own, with a file for each task of a group.
    parts = sorted((folder / group / name).glob("*.jsonl"))
    samples = [row for path in parts for row in read_lines(path)]
    samples = samples or read_lines(folder / group / f"{name}.jsonl")
    return {str(sample["id"]): " ".join(_parts(sample)) for sample in samples}


def _parts(sample: Mapping[str, Any]) -> list[str]:
    """Return the texts that were joined by a space to make the prompt."""
    return [str(sample[key]) for key in ("input", "prefix") if key in sample]


def read_answers(folder: Path, unit: Unit) -> dict[str, dict[str, Any]]:
    """Return one model's answers to a unit by sample id; none where they were not kept.

    Raises:
        MismatchError: a line is not JSON or lacks its id or score; the message names file and line.
    """
    path = unit.path(folder)
    if not path.is_file():
        return {}
    answers: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            answer = json.loads(line)
            answers[str(answer["id"])] = {**answer, "score": float(answer["score"])}
        except (ValueError, KeyError, TypeError) as error:
            raise MismatchError(
                f"{path}:{number}: is not a sample with id and score ({error!r})"
            ) from error
    return answers


def paired_scores(first: Path, second: Path, units: Sequence[Unit]) -> list[Floats]:
    """Return per-sample scores [2, num_samples] of two models for each unit.

    A column is one sample. An empty list says that samples of some unit were not kept.

    Raises:
        MismatchError: the two models were asked different samples.
    """
    pairs = []
    for unit in units:
        left, right = read_answers(first, unit), read_answers(second, unit)
        if not left or not right:
            return []
        if left.keys() != right.keys():
            raise MismatchError(
                f"{unit.path(first)}: holds other samples than {unit.path(second)}; "
                "evaluate both models on the same frozen samples"
            )
        pairs.append(
            np.array([[answers[key]["score"] for key in left] for answers in (left, right)])
        )
    return pairs


def examples(
    folders: Mapping[str, Path], unit: Unit, num_examples: int, prompts: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return a few samples of a unit with every model's answer, spread evenly over the unit.

    Each is {"id", "prompt", "expected", "answers": [{"model", "got", "score"}]}; the prompt is None
    where it is not known.
    """
    answers = {model: read_answers(folder, unit) for model, folder in folders.items()}
    first: dict[str, dict[str, Any]] = next((found for found in answers.values() if found), {})
    ids = list(first)
    chosen = [ids[i * len(ids) // num_examples] for i in range(min(num_examples, len(ids)))]
    if len(ids) <= num_examples:
        chosen = ids
    return [
        {
            "id": key,
            "prompt": prompts.get(key) or first[key].get("prompt"),
            "expected": as_text(first[key].get("expected")),
            "answers": [
                {
                    "model": model,
                    "got": as_text(found[key].get("got")),
                    "score": found[key]["score"],
                }
                for model, found in answers.items()
                if key in found
            ],
        }
        for key in chosen
    ]


def as_text(value: Any) -> str:
    """Return an expected or given answer as one line of text."""
    if value is None:
        return ""
    if isinstance(value, list):
        return " · ".join(as_text(item) for item in value)
    return str(value)
