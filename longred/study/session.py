"""A study in progress: which of its runs are missing, how they run, and what comes of them.

`flows/study.py` makes a Prefect flow of it. Nothing is resumed by hand: a finished stage is an
artifact, so a study that is started again runs only what is missing.
"""

import contextlib
import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from longred.errors import ConfigError, LongredError, LostProcessError, Stopped
from longred.runs.group import end_group, fill_group, open_group
from longred.runs.record import RunRecord, StageRecord, read_runs
from longred.stages.preflight import Preflight, refuse_all
from longred.store.artifacts import Store, canonical_digest
from longred.study.build import assemble, commit, headline_metrics
from longred.study.cells import PlannedCell, distinct, plan_cells
from longred.study.execute import Children, Slot, divide
from longred.study.gather import Finished, finished_cells
from longred.study.result import StudyResult
from longred.study.spec import Study, load_study
from longred.study.tables import markdown

LookUp = Callable[[str, Sequence[str]], Sequence[StageRecord]]
"""Returns the stages of a recipe with overrides as a dry run of the pipeline finds them."""

MAX_ERRORS = 5


class Listener(Protocol):
    """Shows a study."""

    def begun(self, num_cells: int, num_missing: int) -> None:
        """Handle the start: how many runs the study has, and how many are missing."""

    def ended(self, cell: PlannedCell, end: float | BaseException) -> None:
        """Handle the end of a run: its duration in seconds, or its error."""


class Silent:
    """Listener that shows nothing."""

    def begun(self, num_cells: int, num_missing: int) -> None:
        """Do nothing."""

    def ended(self, cell: PlannedCell, end: float | BaseException) -> None:
        """Do nothing."""


_listener: ContextVar[Listener] = ContextVar("longred_study_listener")


@contextlib.contextmanager
def shown_by(listener: Listener) -> Iterator[None]:
    """Show every study that is opened in the block; its flow's parameters are a form for users."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@dataclass
class OpenStudy:
    """A study whose runs are being looked up, run and read.

    Attributes:
        name: of the study's file.
        given: the name or path that `longred study` was given.
        study: its content.
        cells: all planned runs, or those that were asked for.
        store: the store of all of them.
        look_up: finds a cell's stages.
        slots: shares of this machine; as many cells run side by side.
        listener: shows the study.
        group: id of the MLflow run that groups the study's runs; empty without MLflow.
        is_whole: whether `cells` are all runs of the study.
        errors: name of each run that failed → its error.
    """

    name: str
    given: str
    study: Study
    cells: list[PlannedCell]
    store: Store
    look_up: LookUp
    slots: list[Slot]
    listener: Listener = field(default_factory=Silent)
    group: str = ""
    is_whole: bool = True
    errors: dict[str, BaseException] = field(default_factory=dict)
    children: Children = field(default_factory=Children)
    _free: "queue.SimpleQueue[Slot]" = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        """Make all slots free."""
        for slot in self.slots:
            self._free.put(slot)

    @property
    def logs(self) -> Path:
        """Folder of the output of each run."""
        return self.store.root / "studies" / self.name

    def stages(self, cell: PlannedCell) -> Sequence[StageRecord]:
        """Return the stages of a cell as a dry run of the pipeline finds them."""
        return self.look_up(cell.recipe, cell.overrides)

    def missing(self) -> list[PlannedCell]:
        """Return the runs that would build something, each once, in order.

        Raises:
            LongredError: one of them would be refused; the message names its variant.
        """
        found = []
        variants: set[tuple[str, str]] = set()
        texts: set[str] = set()
        for cell in distinct(self.cells):
            with _placed(cell):
                stages = self.stages(cell)
                built = _built(stages)
                if not built:
                    continue
                found.append(cell)
                if (cell.panel, cell.variant) not in variants:
                    # A refusal does not depend on the seed.
                    variants.add((cell.panel, cell.variant))
                    # Most variants read the same text, and reading it takes the longest.
                    text = _text(cell)
                    if text in texts:
                        built = built - {"data"}
                    texts.add(text)
                    works = [Path(stage.work) for stage in stages if stage.work]
                    methods = cell.config.training.methods()
                    refuse_all(Preflight(cell.config, built, methods, works=works))
        return found

    def run(self, cell: PlannedCell) -> float:
        """Run a cell in a free slot; return its duration in seconds.

        Raises:
            LongredError: as the run does.
        """
        slot = self._free.get()
        started = time.monotonic()
        try:
            # Runs share stages: one builds, the others wait.
            settings = ["store.wait=true", f"store.path={self.store.root}"]
            if self.group:
                settings.append(f"tracking.parent_run_id={self.group}")
            name = f"{cell.panel}.{cell.variant}.{cell.seed}.log"
            self.children.run(cell, slot, self.logs / name, settings)
        finally:
            self._free.put(slot)
        return time.monotonic() - started

    def result(self) -> StudyResult:
        """Return the result of the runs that are finished."""
        runs: dict[str, list[RunRecord]] = {}
        for record in read_runs(self.store):
            runs.setdefault(record.digest, []).append(record)

        def find(cell: PlannedCell) -> Finished | None:
            stages = self.stages(cell)
            if _built(stages):
                return None
            attempts = runs.get(cell.digest, [])
            ended = [run for run in attempts if run.status == "finished"]
            return Finished(
                cell,
                ended[-1].id if ended else "",
                {stage.name: stage for stage in stages},
                sum((run.finished or run.started) - run.started for run in attempts),
            )

        return assemble(
            self.name,
            self.given,
            self.study,
            finished_cells(self.cells, find),
            num_planned=len(distinct(self.cells)),
        )

    def begin(self) -> list[PlannedCell]:
        """Return the missing runs, after telling MLflow and the listener of the study."""
        cells = self.missing()
        if cells:
            self.group = _group(self)
        self.listener.begun(len(distinct(self.cells)), len(cells))
        return cells

    def ended(self, cell: PlannedCell, end: float | BaseException) -> None:
        """Note that a run ended: its duration in seconds, or its error."""
        if isinstance(end, BaseException):
            self.errors[cell.name] = end
        self.listener.ended(cell, end)

    def finish(self) -> Path:
        """Write the artifact of the study, tell MLflow, and return the artifact's folder.

        A part of a study makes no artifact: then it is the folder of the logs.

        Raises:
            LongredError: a run failed; of the class of the first one, and the message has all.
        """
        if self.errors:
            errors = list(self.errors.values())
            texts = "\n".join(map(str, errors[:MAX_ERRORS]))
            rest = f"\nand {len(errors) - MAX_ERRORS} more" if len(errors) > MAX_ERRORS else ""
            first = errors[0]
            kind = type(first) if isinstance(first, LongredError) else LostProcessError
            raise kind(
                f"{len(errors)} runs failed; the others are finished:\n{texts}{rest}"
            ) from first
        if not self.is_whole:
            return self.logs
        artifact, result = commit(self.store, self.study, self.result())
        if self.group:
            fill_group(
                self.store.root,
                self.cells[0].config.tracking,
                self.group,
                metrics=headline_metrics(result),
                files=[path for path in artifact.folder.iterdir() if path.is_file()],
                note=markdown(result),
            )
        return artifact.folder


def _text(cell: PlannedCell) -> str:
    """Return what decides whether there is enough text: the data of all windows, the tokenizer."""
    configs = (*cell.config.windows(), cell.config)
    sections = (*(config.data for config in configs), cell.config.model)
    return "\n".join(section.model_dump_json() for section in sections)


def _built(stages: Sequence[StageRecord]) -> set[str]:
    """Return the stages that would build something."""
    return {stage.stage for stage in stages if stage.status != "skipped"}


@contextlib.contextmanager
def open_study(
    given: str,
    look_up: LookUp,
    *,
    only: Sequence[str] = (),
    num_slots: int | None = None,
) -> Iterator[OpenStudy]:
    """Open a study; if the block raises, stop its running cells, which save their progress.

    Args:
        given: name of a packaged study, or its file.
        look_up: finds a cell's stages.
        only: panels or variants to run; empty for all.
        num_slots: cells that run side by side; None for the study's own number.

    Raises:
        ConfigError: the study, a setting of a variant, or the number of slots is wrong.
    """
    name, study = load_study(given)
    cells = plan_cells(study, only)
    roots = {cell.config.store.path for cell in cells}
    if len(roots) > 1:
        raise ConfigError("store.path: all runs of a study share one store; set it once")
    opened = OpenStudy(
        name=name,
        given=given,
        study=study,
        cells=cells,
        store=Store(roots.pop()),
        look_up=look_up,
        slots=_slots(num_slots or study.slots, cells),
        listener=_listener.get(Silent()),
        is_whole=not only,
    )
    status = "KILLED"
    try:
        yield opened
        status = "FINISHED"
    except Exception as error:
        status = "KILLED" if isinstance(error, Stopped) else "FAILED"
        raise
    finally:
        if status != "FINISHED":
            opened.children.stop()
        if opened.group:
            end_group(opened.store.root, cells[0].config.tracking, opened.group, status)


def _group(opened: OpenStudy) -> str:
    """Open the MLflow run that groups the runs of a study, or find it again."""
    study = opened.study
    values = study.model_dump(mode="json", exclude={"slots"})
    return open_group(
        opened.store.root,
        opened.cells[0].config.tracking,
        name=f"study {opened.name}",
        key=canonical_digest({"name": opened.name, "study": values})[:16],
        note=study.description or study.title,
        tags={"longred.study": opened.name},
    )


def _slots(num_slots: int, cells: Sequence[PlannedCell]) -> list[Slot]:
    import torch

    num_gpus = torch.cuda.device_count()
    needed = max(cell.config.training.parallel.num_processes for cell in cells)
    if num_gpus and num_slots * needed > num_gpus:
        raise ConfigError(
            f"--slots: {num_slots} runs of {needed} processes need {num_slots * needed} GPUs, and "
            f"this machine has {num_gpus}; use --slots {max(1, num_gpus // needed)}"
        )
    return divide(num_slots, num_gpus=num_gpus, num_cores=len(os.sched_getaffinity(0)))


@contextlib.contextmanager
def _placed(cell: PlannedCell) -> Iterator[None]:
    """Name the variant in the message of an error."""
    try:
        yield
    except LongredError as error:
        place = f"panels.{cell.panel}.variants.{cell.variant}"
        raise type(error)(f"{place}: {error}") from None
