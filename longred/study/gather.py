"""Reads what the finished runs of a study measured.

A run's stages are found by a dry run of the pipeline, so that a cell counts as finished exactly
if `longred run` would build nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from longred.cost.flops import step_flops
from longred.cost.recipe import lengths_of
from longred.cost.shape import shape_of
from longred.errors import MismatchError
from longred.method.job import TrainingJob
from longred.method.kept import kept_name
from longred.models.load import load_config
from longred.report.left_out import Dropped, barely_solved, score_of
from longred.report.names import ORIGINAL, RESCALED
from longred.report.scores import Comparison, average, collect, units_of
from longred.runs.record import StageRecord
from longred.store.artifacts import read_json
from longred.study.cells import PlannedCell
from longred.study.measures import STUDENT
from longred.study.result import Cell, ModelScores, Training

SAMPLES = "evaluation/samples"


@dataclass(frozen=True, slots=True)
class Finished:
    """A cell whose artifacts all exist.

    Attributes:
        cell: the planned run.
        run: id of the run that built it.
        stages: name of each stage → its record.
        seconds: duration of all runs with its settings, unfinished ones included.
    """

    cell: PlannedCell
    run: str
    stages: Mapping[str, StageRecord]
    seconds: float = 0.0

    @property
    def evaluations(self) -> dict[str, Path]:
        """Folder of the evaluation of each model, by `Cell.models`' names."""
        method = self.cell.config.training.method
        names = {ORIGINAL: ORIGINAL, RESCALED: RESCALED, method: STUDENT}
        for step in self.cell.config.training.keep_steps:
            names[kept_name(method, step)] = str(step)
        found = {}
        for name, stage in self.stages.items():
            model = name.partition("/")[2]
            if stage.stage == "evaluation" and name != SAMPLES and model in names:
                found[names[model]] = Path(str(stage.path))
        return found


def dropped_tasks(finished: Sequence[Finished]) -> list[Dropped]:
    """Return the tasks to drop for all variants and seeds of a panel.

    They are judged by the original's mean, so that every run averages the same tasks.
    """
    originals: dict[Path, Mapping[str, Any]] = {}
    for each in finished:
        if folder := each.evaluations.get(ORIGINAL):
            originals[folder] = read_json(folder / "scores.json")
    config = finished[0].cell.config
    mean, units = _mean_scores(list(originals.values())), units_of(originals.values())
    minimum = config.report.min_points_above_chance
    dropped = barely_solved(mean, units, config.original_window, minimum)
    count = f" (mean over {len(originals)} evaluations)"
    return [Dropped(entry.unit, entry.reason + count) for entry in dropped]


def _mean_scores(originals: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    mean: dict[str, Any] = {"short": {}, "ruler": {}}
    for unit in units_of(originals):
        entries = [entry for raw in originals if (entry := score_of(raw, unit)) is not None]
        if not entries:
            continue
        group = mean["short"] if unit.length is None else mean["ruler"]
        if unit.length is not None:
            group = group.setdefault(str(unit.length), {})
        group[unit.task] = {
            key: fmean(float(entry.get(key) or 0.0) for entry in entries)
            for key in ("score", "chance")
        }
    return mean


def compared(each: Finished, dropped: Sequence[Dropped]) -> Comparison:
    """Compare the models of one run; tasks that it never asked are not dropped from it."""
    folders = each.evaluations
    if STUDENT not in folders:
        raise MismatchError(f"{each.cell.name}: its student was not evaluated")
    asked = set(units_of(read_json(folder / "scores.json") for folder in folders.values()))
    config = each.cell.config
    return collect(
        folders,
        original_window=config.original_window,
        dropped=[entry for entry in dropped if entry.unit in asked],
    )


def read_cell(each: Finished, comparison: Comparison) -> Cell:
    """Return the scores and cost of one run."""
    return Cell(
        seed=each.cell.seed,
        run=each.run,
        command=each.cell.command,
        settings=each.cell.digest,
        evaluation=str(each.stages[f"evaluation/{each.cell.config.training.method}"].digest),
        models={
            name: _scores(model, comparison.drifts.get(name), each.cell.config.original_window)
            for name, model in comparison.models.items()
        },
        training=_training(each),
    )


def _scores(
    model: Mapping[str, Any], drift: Mapping[str, Any] | None, original_window: int
) -> ModelScores:
    def tasks(scores: Mapping[str, Any]) -> dict[str, float | None]:
        return {name: value for name, value in scores.items() if name != "average"}

    ruler = {int(length): scores["average"] for length, scores in model["ruler"].items()}
    beyond = average(score for length, score in ruler.items() if length > original_window)
    return ModelScores(
        short_average=model["short"]["average"],
        short_retention=model["retention"]["short"],
        capacities=dict(model["capacities"]),
        tasks=tasks(model["short"]),
        ruler=ruler,
        ruler_tasks={int(length): tasks(scores) for length, scores in model["ruler"].items()},
        ruler_average=beyond,
        average=average([*model["capacities"].values(), beyond]),
        similarity=model["similarity"],
        similarity_per_layer=model["similarity_per_layer"],
        attention_kl_per_layer=list(drift["attention_kl"]) if drift else None,
        nats_per_token=model["nats_per_token"],
    )


def _training(each: Finished) -> Training | None:
    """Return the cost of a student over all of its trainings; None if nothing was trained."""
    stages = [stage for stage in each.stages.values() if stage.stage == "training"]
    if not stages:
        return None
    found = [_cost(each, Path(str(stage.path))) for stage in stages]
    last = found[-1][0]["environment"]
    number = last["num_threads"]
    threads = f", {number} thread{'s' * (number != 1)}" if last.get("device") == "cpu" else ""
    processes = last.get("num_processes", 1)
    times = f"{processes} x " if processes > 1 else ""
    return Training(
        num_steps=sum(int(training["num_steps"]) for training, _ in found),
        tokens=sum(int(training["tokens"]) for training, _ in found),
        flops=sum(flops for _, flops in found),
        seconds=round(sum(float(training["seconds"]) for training, _ in found), 1),
        hardware=f"{times}{last['hardware']} ({last['device']}){threads}",
        digest=str(stages[-1].digest),
    )


def _cost(each: Finished, folder: Path) -> tuple[Mapping[str, Any], float]:
    """Return training.json of a student, a merged one's own training's, and its operations."""
    training = read_json(folder / "training.json")
    job = TrainingJob.from_json(training["job"])
    shape = shape_of(load_config(folder))
    per_step = step_flops(shape, job, lengths_of(each.cell.config, job))
    return training, per_step * int(training["num_steps"])


Find = Callable[[PlannedCell], Finished | None]


def finished_cells(cells: Iterable[PlannedCell], find: Find) -> list[Finished]:
    """Return the cells whose artifacts all exist, in order; equal cells are looked up once."""
    known: dict[str, Finished | None] = {}
    found = []
    for cell in cells:
        if cell.digest not in known:
            known[cell.digest] = find(cell)
        if (each := known[cell.digest]) is not None:
            found.append(replace(each, cell=cell))
    return found
