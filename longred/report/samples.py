"""Reads per-sample answers of the models, and computes paired bootstrap intervals from them."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longred.errors import MismatchError
from longred.evaluation.tasks import read_lines

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """An evaluated task: a short task, or a RULER task at one length in tokens."""

    task: str
    length: int | None = None

    def label(self) -> str:
        """Return the name for readers."""
        return self.task if self.length is None else f"{self.task} at {self.length:,} tokens"

    def place(self) -> tuple[str, str]:
        """Return the group, short or ruler, and the unit's name in it."""
        if self.length is None:
            return "short", self.task
        return "ruler", f"{self.task}-{self.length}"

    def path(self, folder: Path) -> Path:
        """Return the file of per-sample scores in one model's evaluation folder."""
        return folder / "samples" / f"{'-'.join(self.place())}.jsonl"


def frozen_prompts(folder: Path, unit: Unit) -> dict[str, str]:
    """Return the prompts of a unit by sample id.

    Args:
        folder: the frozen samples on which the models were evaluated.
        unit: the task.

    Raises:
        MismatchError: the folder does not hold the unit, or a line is not a JSON object.
    """
    place = folder.joinpath(*unit.place())
    # An lm-eval task has its own folder, with one file per task of a group.
    samples = [row for path in sorted(place.glob("*.jsonl")) for row in read_lines(path)]
    samples = samples or read_lines(place.with_name(f"{place.name}.jsonl"))
    return {
        str(sample["id"]): " ".join(
            str(sample[key]) for key in ("input", "prefix") if key in sample
        )
        for sample in samples
    }


def read_answers(folder: Path, unit: Unit) -> dict[str, dict[str, Any]]:
    """Return one model's answers to a unit by sample id; empty if they were not saved.

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


def examples(
    folders: Mapping[str, Path], unit: Unit, num_examples: int, prompts: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return a few samples of a unit, spread evenly over it, with every model's answer.

    Each is {"id", "prompt", "expected", "answers": [{"model", "got", "score"}]}; an unknown prompt
    is None.
    """
    answers = {model: read_answers(folder, unit) for model, folder in folders.items()}
    first: dict[str, dict[str, Any]] = next((found for found in answers.values() if found), {})
    ids = list(first)
    count = min(num_examples, len(ids))
    return [
        {
            "id": key,
            "prompt": prompts.get(key) or first[key].get("prompt"),
            "expected": _as_text(first[key].get("expected")),
            "answers": [
                {
                    "model": model,
                    "got": _as_text(found[key].get("got")),
                    "score": found[key]["score"],
                }
                for model, found in answers.items()
                if key in found
            ],
        }
        for key in (ids[i * len(ids) // count] for i in range(count))
    ]


def _as_text(value: Any) -> str:
    """Return an expected or given answer as one line of text."""
    if isinstance(value, list):
        return " · ".join(_as_text(item) for item in value)
    return "" if value is None else str(value)


def paired_scores(first: Path, second: Path, units: Sequence[Unit]) -> list[Floats]:
    """Return per-sample scores [2, num_samples] of two models for each unit.

    A column is one sample. The list is empty if the samples of some unit were not saved.

    Raises:
        MismatchError: the two models were evaluated on different samples.
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


def ratio(averages: Floats) -> Floats:
    """Return model 0 over model 1 in percent, NaN where that is 0; `averages` is [2, ...]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(averages[1] > 0, 100.0 * averages[0] / averages[1], np.nan)


def difference(averages: Floats) -> Floats:
    """Return model 0 minus model 1 in points; `averages` is [2, ...]."""
    return np.asarray(averages[0] - averages[1], dtype=np.float64)


def paired_interval(
    tasks: Sequence[Floats],
    statistic: Callable[[Floats], Floats],
    *,
    weights: Sequence[float] | None = None,
    seed: int,
) -> Interval | None:
    """Return the percentile bootstrap interval of a statistic of two models' averages over tasks.

    Samples are resampled within each task, with the same indices for both models, so an effect
    that both models share (an easy or a hard sample) cancels out.

    Args:
        tasks: one array [2, num_samples] of per-sample scores per task.
        statistic: maps the averages [2, ...] to values [...].
        weights: relative weight of each task in the average; None for equal weights.
        seed: seed of the resampling.

    Returns:
        The ends of the 95 % interval; None if a task has fewer than two samples or the statistic of
        a resample is undefined.
    """
    if not tasks or any(task.shape[1] < 2 for task in tasks):
        return None
    means = [task.mean(axis=-1) for task in tasks]
    if not np.isfinite(statistic(np.average(means, axis=0, weights=weights))):
        return None
    from scipy.stats import DegenerateDataWarning, bootstrap

    def resampled(*indices: Any, axis: int = -1) -> Floats:
        averages = [
            task[:, np.asarray(index).astype(np.intp)].mean(axis=-1)
            for task, index in zip(tasks, indices, strict=True)
        ]
        return statistic(np.average(averages, axis=0, weights=weights))

    # The bootstrap draws index arrays, independently for each task. That pairs the models within a
    # task and allows tasks of different sizes; paired=True does not.
    with warnings.catch_warnings():
        # Undefined resamples return None below.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        result = bootstrap(
            [np.arange(task.shape[1]) for task in tasks],
            resampled,
            n_resamples=NUM_RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(seed),
        )
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    return (low, high) if np.isfinite(result.bootstrap_distribution).all() else None
