"""Reads per-sample answers of the models, and the draws that intervals are computed from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longred.errors import MismatchError
from longred.evaluation.intervals import Draws, draws_of
from longred.evaluation.prompts import plain_prompt
from longred.evaluation.tasks import read_lines


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """An evaluated task: a short task, or a RULER task at one length in tokens."""

    task: str
    length: int | None = None

    def label(self, mark: str = "") -> str:
        """Return the name for readers, with a mark behind the task."""
        where = "" if self.length is None else f" at {self.length:,} tokens"
        return f"{self.task}{mark}{where}"

    def place(self) -> tuple[str, str]:
        """Return the group, short or ruler, and the unit's name in it."""
        if self.length is None:
            return "short", self.task
        return "ruler", f"{self.task}-{self.length}"

    def path(self, folder: Path) -> Path:
        """Return the file of per-sample scores in one model's evaluation folder."""
        return folder / "samples" / f"{'-'.join(self.place())}.jsonl"


def frozen_prompts(folder: Path, unit: Unit) -> dict[str, str]:
    """Return the prompts of a unit by sample id, as plain text.

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
    return {str(sample["id"]): plain_prompt(sample) for sample in samples}


def read_answers(folder: Path, unit: Unit) -> dict[str, dict[str, Any]]:
    """Return one model's answers to a unit by sample id; empty if they were not saved.

    Raises:
        MismatchError: a line is not JSON or lacks its id or score; the message names file and line.
    """
    path = unit.path(folder)
    if not path.is_file():
        return {}
    answers: dict[str, dict[str, Any]] = {}
    with path.open("rb") as file:
        # Not str.splitlines: an answer may hold line ends of Unicode, which JSON does not escape.
        for number, line in enumerate(file, start=1):
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


class DrawReader:
    """Reads the draws that intervals are computed from; every file of answers once."""

    def __init__(self) -> None:
        self._answers: dict[Path, dict[str, dict[str, Any]]] = {}

    def read(self, folders: Sequence[Path], units: Sequence[Unit]) -> list[Draws]:
        """Return the draws of each unit, the models in the order of their folders.

        The list is empty if the answers to some unit were not saved.

        Raises:
            MismatchError: two models were evaluated on different samples.
        """
        found = []
        for unit in units:
            models = [self._scores(folder, unit) for folder in folders]
            first = models[0]
            for folder, answers in zip(folders, models, strict=True):
                if not answers:
                    return []
                if answers.keys() != first.keys():
                    raise MismatchError(
                        f"{unit.path(folders[0])}: holds other samples than {unit.path(folder)}; "
                        "evaluate both models on the same frozen samples"
                    )
            found.append(draws_of([[answers[key] for key in first] for answers in models]))
        return found

    def _scores(self, folder: Path, unit: Unit) -> dict[str, dict[str, Any]]:
        path = unit.path(folder)
        if path not in self._answers:
            self._answers[path] = {
                key: {name: answer[name] for name in ("score", "group") if name in answer}
                for key, answer in read_answers(folder, unit).items()
            }
        return self._answers[path]
