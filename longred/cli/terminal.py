"""Prints a run: one line per finished stage, and the progress of the current one."""

import time

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from longred.runs.record import RunRecord, StageRecord

LINE_SECONDS = 30.0
NAME_CHARACTERS = 22
SPEED_SECONDS = 1800.0
"""Period over which the remaining time is estimated; a step alone may take minutes."""
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
            line = f"  {stage.name:<{NAME_CHARACTERS}} {status} {seconds}  {stage.digest or ''}"
            self._print_with_reason(line, stage.reason if stage.status == "ran" else None)
        if run.status != "running":
            self._close_bar()

    def _print_with_reason(self, line: str, reason: str | None) -> None:
        """Print a stage's line; a reason that does not fit a terminal's line goes below it."""
        whole = f"{line}  {escape(reason)}" if reason else line
        is_long = Text.from_markup(whole).cell_len > self.console.width
        if reason and is_long and self.console.is_terminal:
            self.console.print(line)
            self.console.print(Padding(Text(reason), (0, 0, 0, 4)))
        else:
            self.console.print(whole, soft_wrap=True)

    def progressed(self, stage: StageRecord, done: int, total: int, text: str) -> None:
        """Print the progress of a stage."""
        if self.console.is_terminal:
            if self._bar is None:
                self._open_bar(stage.name, done, total)
            if self._bar is not None:
                self._bar.update(self._task, completed=done, total=total, text=text)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            line = f"  {stage.name:<22} {done} of {total}  {text}"
            self.console.print(line, soft_wrap=True, markup=False)

    def _open_bar(self, name: str, done: int, total: int) -> None:
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24 if self.console.width >= 120 else 10),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(compact=True),
            _CutColumn(),
            console=self.console,
            transient=True,
            speed_estimate_period=SPEED_SECONDS,
        )
        short = name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…"
        # What an earlier run had done says nothing about this one's speed.
        self._task = self._bar.add_task(short, completed=done, total=total, text="")
        self._bar.start()

    def _close_bar(self) -> None:
        self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _CutColumn(TextColumn):
    """The text of a stage: the only column that yields, cut at the end of the line."""

    def __init__(self) -> None:
        # A column that may wrap is the first that a table narrows; the text itself does not wrap.
        super().__init__("", table_column=Column(no_wrap=False))

    def render(self, task: Task) -> Text:
        """Return the text."""
        return Text(task.fields["text"], no_wrap=True, overflow="ellipsis")
