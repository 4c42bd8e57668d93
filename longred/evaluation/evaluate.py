"""Runs one model through everything that is asked; a killed run repeats at most one unit."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longred.evaluation.scoring import combined
from longred.evaluation.steps import Step, finish, parity, plan
from longred.evaluation.subject import Request, Subject
from longred.evaluation.units import Unit, read_index, read_lines, write_lines
from longred.progress import Progress
from longred.store.artifacts import Store, read_json, write_json
from longred.store.journal import JOURNAL_NAME, Journal

Scored = Callable[[Unit, Mapping[str, Any]], None]
"""Called with each unit that is finished and its result."""


def evaluate(
    request: Request,
    folder: Path,
    work: Path,
    *,
    store: Store,
    on_progress: Progress | None = None,
    on_unit: Scored | None = None,
) -> None:
    """Write a model's `scores.json`, `samples/` and `metrics.jsonl`.

    Each unit (a task at a length, the similarity, the loss) is an artifact of its own: finished
    ones are not done again, whatever else is asked. Scores are percentages; standard errors are
    those of their means.

    Args:
        request: which model, and what it is asked.
        folder: existing folder that receives the result.
        work: existing folder whose `metrics.jsonl` grows while units are finished.
        store: where finished units are kept.
        on_progress: called with units done, units in all, and what was done.
        on_unit: called with each unit of questions and its result.

    Raises:
        MismatchError: samples and model have different tokenizers, or files were changed.
        PreflightError: vLLM is to answer, and is not there or answers otherwise.
        NonFiniteLossError: the model's logits are NaN; finished units are kept.
    """
    steps = plan(request)
    if first := parity(request):
        finish(store, first, Subject(request))
    if request.config.num_processes > 1:
        from longred.evaluation.parallel import finish_in_parallel

        finish_in_parallel(request, steps, work, store=store, on_progress=on_progress)
    subject = Subject(request)
    journal = _LiveJournal(work / JOURNAL_NAME)
    done: list[Done] = []
    for number, step in enumerate(steps, start=1):
        place = finish(store, step, subject).folder
        done.append(Done(step, place, read_json(place / "result.json")))
        journal.note(done[-1])
        if on_unit and step.unit:
            on_unit(step.unit, done[-1].result)
        if on_progress:
            on_progress(number, len(steps), f"{request.name}: {done[-1].line()}")
    write_json(folder / "scores.json", _scores(request, done, folder, journal))
    shutil.copyfile(work / JOURNAL_NAME, folder / JOURNAL_NAME)


@dataclass(frozen=True)
class Done:
    """A finished step, where its answers lie, and its result."""

    step: Step
    folder: Path
    result: dict[str, Any]

    def line(self) -> str:
        """Return what a reader sees of it."""
        unit = self.step.unit
        return self.step.key if unit is None else f"{self.step.key} {self.result['score']:.1f}"


class _LiveJournal:
    """A journal that another run may have begun: a point that is there is not written again."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._known = {(line["key"], line["step"]) for line in self._journal.read()}

    def write(self, metrics: Mapping[str, float], *, step: int) -> None:
        fresh = {key: v for key, v in metrics.items() if (key, step) not in self._known}
        if fresh:
            self._journal.append(fresh, step=step)
            self._known |= {(key, step) for key in fresh}

    def note(self, done: Done) -> None:
        """Write what one step found, where it stands for itself."""
        unit, key, result = done.step.unit, done.step.key, done.result
        if unit is not None and unit.part is None:
            self.write({f"{unit.kind}/{unit.task}": result["score"]}, step=unit.length or 0)
        elif key in _MEASURED:
            self.write({metric: result[name] for metric, name in _MEASURED[key].items()}, step=0)
        elif "bins" in result:
            length = int(key.rpartition("-")[2])
            for each in result["bins"]:
                self.write({f"perplexity/at_{length}": math.exp(each["nats"])}, step=each["end"])
            if result.get("long_ppl") is not None:
                self.write({"perplexity/long_ppl": result["long_ppl"]}, step=length)


_MEASURED = {
    "similarity": {
        "similarity/last": "last",
        "similarity/mean": "mean",
        "similarity/attention_kl": "attention_kl",
    },
    "held_out": {
        "held_out/nats_per_token": "nats_per_token",
        "held_out/bits_per_byte": "bits_per_byte",
    },
}
"""Step → metric key → what of its result that is."""


def _scores(
    request: Request, done: Sequence[Done], folder: Path, journal: _LiveJournal
) -> dict[str, Any]:
    """Return what `scores.json` holds, writing the answers of each task to `samples/`."""
    found = {entry.step.key: entry.result for entry in done}
    scores: dict[str, Any] = {
        "model": request.name,
        "checkpoint": request.checkpoint,
        "short": _unavailable(request.samples),
        "ruler": {},
        "perplexity": {
            key.removeprefix("perplexity-"): result
            for key, result in found.items()
            if key.startswith("perplexity-")
        },
        "similarity": found["similarity"],
        "nats_per_token": found["held_out"]["nats_per_token"],
        "bits_per_byte": found["held_out"]["bits_per_byte"],
    }
    tasks: dict[str, list[tuple[Unit, Done]]] = {}
    for entry in done:
        if entry.step.unit is not None:
            tasks.setdefault(entry.step.unit.table, []).append((entry.step.unit, entry))
    for table, parts in tasks.items():
        unit = parts[0][0]
        answers = [row for _, part in parts for row in read_lines(part.folder / "answers.jsonl")]
        score = combined([part.result for _, part in parts], answers)
        score |= {"capacity": unit.capacity} if unit.capacity else {}
        score |= {"fill": unit.fill} if unit.fill is not None else {}
        write_lines(folder / "samples" / f"{table}.jsonl", answers)
        group = scores[unit.kind]
        if unit.length is not None:
            group = group.setdefault(str(unit.length), {})
        group[unit.task] = score
        journal.write({f"{unit.kind}/{unit.task}": score["score"]}, step=unit.length or 0)
    return scores


def _unavailable(samples: Path) -> dict[str, Any]:
    """Return the short tasks that nobody could be asked: without a score, and why."""
    return {
        task: {"score": None, "reason": entry["unavailable"], "capacity": entry["capacity"]}
        for task, entry in read_index(samples)["short"].items()
        if "unavailable" in entry
    }
