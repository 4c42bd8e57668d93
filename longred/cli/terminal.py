"""Prints a run: one line per finished stage, and the progress of the current one."""

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from longred.runs.record import RunRecord, StageRecord

LINE_SECONDS = 30.0
_COLOURS = {
    "ran": "green",
    "skipped": "cyan",
    "failed": "red",
    "stopped": "yellow",
    "lost": "red",
    "stale": "yellow",
}


class Terminal:
    """Listener that prints a run: a progress bar on a terminal, a line every 30 s elsewhere.

    Args:
        console: output; standard error by default, since standard output holds results only.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._begun = False
        self._shown = 0
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last_line = 0.0

    def changed(self, run: RunRecord) -> None:
        """Print the stages that ended since the last call."""
        if not self._begun:
            self._begun = True
            self.console.print(f"run {run.id}")
        while self._shown < len(run.stages) and run.stages[self._shown].status != "running":
            self._close_bar()
            stage = run.stages[self._shown]
            self._shown += 1
            status = f"[{_COLOURS.get(stage.status, 'default')}]{stage.status:<8}[/]"
            seconds = f"{stage.seconds or 0.0:8.1f} s"
            why = f"  {stage.reason}" if stage.reason and stage.status == "ran" else ""
            self.console.print(
                f"  {stage.name:<22} {status} {seconds}  {stage.digest or ''}{escape(why)}",
                soft_wrap=True,
            )
        if run.status != "running":
            self._close_bar()

    def progressed(self, stage: StageRecord, done: int, total: int, text: str) -> None:
        """Print the progress of a stage."""
        if self.console.is_terminal:
            if self._bar is None:
                self._open_bar(stage.name)
            if self._bar is not None:
                self._bar.update(self._task, completed=done, total=total, text=text)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            line = f"  {stage.name:<22} {done} of {total}  {text}"
            self.console.print(line, soft_wrap=True, markup=False)

    def _open_bar(self, name: str) -> None:
        self._bar = Progress(
            TextColumn("  {task.description:<22}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}", markup=False),
            console=self.console,
            transient=True,
        )
        self._task = self._bar.add_task(name, text="")
        self._bar.start()

    def _close_bar(self) -> None:
        self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
