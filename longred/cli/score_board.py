"""Shows scores during an evaluation: a live table on a terminal, one line per score elsewhere."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from longred.evaluation.tasks import Task


class ScoreBoard:
    """Live table of tasks by models, in percent; a context manager.

    Args:
        models: names of the models, in column order.
        console: output; standard error by default, since standard output holds results only.
    """

    def __init__(self, models: Sequence[str], console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._models = list(models)
        self._scores: dict[str, dict[str, list[str]]] = {}
        self._live: Live | None = None

    def __enter__(self) -> "ScoreBoard":
        """Start the live table."""
        if self.console.is_terminal:
            self._live = Live(self._table(), console=self.console, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the live table; the caller prints the result."""
        if self._live is not None:
            self._live.stop()

    def add(self, model: str, task: "Task", result: Mapping[str, Any]) -> None:
        """Add the score of one task, as `evaluation.results.summary` returns it."""
        from longred.report.names import BUILT_IN

        name = (task.part or task.name) + (BUILT_IN if task.builtin else "")
        name = name if task.length is None else f"{name} at {task.length:,}"
        parts = [f"{result['score']:.1f}"]
        if result.get("interval"):
            parts.append("[{:.1f}, {:.1f}]".format(*result["interval"]))
        if result.get("unparsed"):
            parts.append(f"({result['unparsed']:,} unparsed)")
        self._scores.setdefault(name, {})[model] = parts
        if self._live is not None:
            self._live.update(self._table())
        else:
            text = f"  {model:<16} {name:<32} {' '.join(parts)}"
            self.console.print(text, soft_wrap=True, markup=False)

    def _table(self) -> Table:
        # The name of the task is cut before a score is, and a score is a line of its own.
        columns = [Column(model, no_wrap=True, justify="right") for model in self._models]
        table = Table("task", *columns)
        for name, scores in self._scores.items():
            task = Text(name, no_wrap=True, overflow="ellipsis")
            cells = (Text("\n".join(scores.get(model, ["…"]))) for model in self._models)
            table.add_row(task, *cells)
        return table
