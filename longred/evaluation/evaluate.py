"""Evaluates one model on all samples; a run that was killed repeats at most one task."""

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longred.evaluation.model import EvaluatedModel
from longred.evaluation.plan import TaskRun, parity_run, plan
from longred.evaluation.results import combined
from longred.evaluation.tasks import Row, Task, read_index, read_lines, write_lines
from longred.progress import Progress
from longred.store.artifacts import Store, read_json, write_json
from longred.store.journal import JOURNAL_NAME, Journal

log = logging.getLogger(__name__)

OnTask = Callable[[Task, Mapping[str, Any]], None]
"""Called with each finished task and its aggregated scores."""

MAX_NAMED_TASKS = 5
"""Tasks that a warning of truncated prompts names."""

_LOGGED = {
    "similarity": ("last", "mean", "attention_kl"),
    "held_out": ("nats_per_token", "bits_per_byte"),
}
"""Measurement -> the values of its result that are logged as metrics."""


def evaluate(
    model: EvaluatedModel,
    folder: Path,
    work: Path,
    *,
    store: Store,
    on_progress: Progress | None = None,
    on_task: OnTask | None = None,
) -> None:
    """Write a model's `scores.json`, `samples/` and `metrics.jsonl`.

    The result of each task and measurement is an artifact of its own; finished ones are reused.
    Scores are percentages, with their 95 % intervals.

    Args:
        model: the model and its samples.
        folder: existing folder that receives the result.
        work: existing folder whose `metrics.jsonl` grows with each finished task.
        store: store of finished results.
        on_progress: called with tasks done, tasks in all, and a line about the last one.
        on_task: called with each finished task and its scores.

    Raises:
        MismatchError: samples and model have different tokenizers, or files were changed.
        PreflightError: vLLM is configured and is not installed or fails the parity check.
        NonFiniteLossError: the model's logits are NaN; finished results are saved.
    """
    runs = plan(model)
    if check := parity_run(model):
        check.finish(store)
    if model.config.num_processes > 1:
        # Its memory is for the processes.
        model.release()
        from longred.evaluation.parallel import finish_in_parallel

        finish_in_parallel(model, runs, work, store=store, on_progress=on_progress)
    journal = _NewPoints(work / JOURNAL_NAME)
    folders: dict[str, Path] = {}
    results: dict[str, Row] = {}
    for number, run in enumerate(runs, start=1):
        folders[run.key] = run.finish(store)
        result = results[run.key] = read_json(folders[run.key] / "result.json")
        for metrics, step in _points(run, result):
            journal.append(metrics, step=step)
        if on_task and run.task:
            on_task(run.task, result)
        if on_progress:
            score = f" {result['score']:.1f}" if run.task else ""
            on_progress(number, len(runs), f"{model.name}: {run.key}{score}")
    tasks = _task_scores(runs, results, folders, folder / "samples")
    for task, entry in tasks:
        journal.append({f"{task.kind}/{task.name}": entry["score"]}, step=task.length or 0)
    _warn_of_truncated(model, tasks)
    write_json(folder / "scores.json", _scores(model, tasks, results))
    shutil.copyfile(work / JOURNAL_NAME, folder / JOURNAL_NAME)


class _NewPoints(Journal):
    """A journal that an interrupted run may have begun: existing points are not written twice."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._known = {(line["key"], line["step"]) for line in self.read()}

    def append(self, metrics: Mapping[str, float], *, step: int) -> None:
        fresh = {key: v for key, v in metrics.items() if (key, step) not in self._known}
        if fresh:
            super().append(fresh, step=step)
            self._known |= {(key, step) for key in fresh}


def _points(run: TaskRun, result: Row) -> Iterator[tuple[dict[str, float], int]]:
    """Yield the metrics of a run with their steps; members of a group have none of their own."""
    if run.task:
        if run.task.part is None:
            yield {f"{run.task.kind}/{run.task.name}": result["score"]}, run.task.length or 0
    elif run.key in _LOGGED:
        yield {f"{run.key}/{name}": result[name] for name in _LOGGED[run.key]}, 0
    else:
        length = int(run.key.rpartition("-")[2])
        for each in result["bins"]:
            yield {f"perplexity/at_{length}": math.exp(each["nats"])}, each["end"]
        if result.get("long_ppl") is not None:
            yield {"perplexity/long_ppl": result["long_ppl"]}, length


def _task_scores(
    runs: Sequence[TaskRun],
    results: Mapping[str, Row],
    folders: Mapping[str, Path],
    samples_folder: Path,
) -> list[tuple[Task, Row]]:
    """Return the scores of each task, combining the members of groups; write all its answers."""
    tables: dict[str, list[Task]] = {}
    for run in runs:
        if run.task:
            tables.setdefault(run.task.table, []).append(run.task)
    scores = []
    for table, parts in tables.items():
        task = parts[0]
        paths = [folders[part.key] / "answers.jsonl" for part in parts]
        answers = [row for path in paths for row in read_lines(path)]
        write_lines(samples_folder / f"{table}.jsonl", answers)
        entry = combined([results[part.key] for part in parts], answers)
        entry |= {"capacity": task.capacity} if task.capacity else {}
        entry |= {"fill": task.fill} if task.fill is not None else {}
        entry |= {name: True for name in ("builtin", "counts") if getattr(task, name)}
        scores.append((task, entry))
    return scores


def _warn_of_truncated(model: EvaluatedModel, tasks: Sequence[tuple[Task, Row]]) -> None:
    counts = [
        f"{task.name} {entry['truncated']:,} of {entry['num_samples']:,}"
        for task, entry in tasks
        if entry["truncated"]
    ]
    if counts:
        others = len(counts) - MAX_NAMED_TASKS
        log.warning(
            "%s: prompts longer than the window of %s tokens lost their beginning: %s%s; ask with "
            "fewer examples (num_fewshot in a suite), or a model with a longer window",
            model.name,
            f"{model.max_tokens:,}",
            ", ".join(counts[:MAX_NAMED_TASKS]),
            f" and {others:,} more tasks" if others > 0 else "",
        )


def _scores(
    model: EvaluatedModel, tasks: Sequence[tuple[Task, Row]], results: Mapping[str, Row]
) -> Row:
    """Return the content of `scores.json`."""
    # Short tasks whose data are unavailable have no score, but a reason.
    short: Row = {
        name: {"score": None, "reason": entry["unavailable"], "capacity": entry["capacity"]}
        for name, entry in read_index(model.samples)["short"].items()
        if "unavailable" in entry
    }
    ruler: dict[str, Row] = {}
    for task, entry in tasks:
        group = short if task.length is None else ruler.setdefault(str(task.length), {})
        group[task.name] = entry
    long_texts = {key: value for key, value in results.items() if key.startswith("perplexity-")}
    return {
        "model": model.name,
        "checkpoint": model.checkpoint,
        "short": short,
        "ruler": ruler,
        "perplexity": {key.removeprefix("perplexity-"): v for key, v in long_texts.items()},
        "similarity": results.get("similarity"),
        "nats_per_token": results["held_out"]["nats_per_token"],
        "bits_per_byte": results["held_out"]["bits_per_byte"],
    }
