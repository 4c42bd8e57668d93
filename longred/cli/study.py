"""Verbs for studies: `study` runs a grid of recipes and seeds, `report` writes its page."""

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longred.cli.common import StoreOption, print_facts
from longred.errors import ConfigError, Stopped
from longred.progress import duration

if TYPE_CHECKING:
    from longred.study.cells import PlannedCell
    from longred.study.session import OpenStudy

StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="a packaged study's name, or a YAML file")
]


class Lines:
    """Listener that prints one line for each run that ends, with the time that is left."""

    def begun(self, num_cells: int, num_missing: int) -> None:
        """Say how many runs there are."""
        self._started, self._total, self._done = time.monotonic(), num_missing, 0
        done = num_cells - num_missing
        typer.echo(f"{num_cells} runs: {done} are finished, {num_missing} to go", err=True)

    def ended(self, cell: "PlannedCell", end: float | BaseException) -> None:
        """Print the run, and the time that the rest takes at the pace so far."""
        self._done += 1
        took = "failed" if isinstance(end, BaseException) else duration(end)
        left = (time.monotonic() - self._started) / self._done * (self._total - self._done)
        rest = f"  {duration(left)} left" if self._done < self._total else ""
        typer.echo(f"  {self._done:>4}/{self._total}  {cell.name:<40} {took}{rest}", err=True)


def study(
    name: StudyArgument,
    slots: Annotated[
        int | None,
        typer.Option("--slots", min=1, help="runs side by side, each with its part of the machine"),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="PANEL[/VARIANT],…", help="run only these"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print which runs are missing; run nothing")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    store: StoreOption = None,
) -> None:
    """Run a grid of recipes and seeds; compare them with intervals and tests."""
    from longred.cli.flow_host import run_study
    from longred.cli.resolve import use_store
    from longred.study.session import shown_by

    use_store(store)
    chosen = [each.strip() for each in only.split(",")] if only else []
    opened = _open(name, chosen)
    missing = opened.missing()  # before a server starts: a wrong variant is refused at once
    if dry_run:
        _print_missing(opened, missing, as_json)
        return
    if missing:
        try:
            with shown_by(Lines()):
                run_study(opened.store, name, slots, chosen)
        except KeyboardInterrupt:
            raise Stopped(signal.SIGINT) from None
    _print_result(_open(name, chosen), None, as_json)


def report(
    name: StudyArgument,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FOLDER", help="write page and plots here")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    store: StoreOption = None,
) -> None:
    """Write the page of a study from its finished runs, also while others are missing."""
    from longred.cli.resolve import use_store

    use_store(store)
    _print_result(_open(name, []), output, as_json)


def _open(name: str, only: Sequence[str]) -> "OpenStudy":
    from longred.cli.flow_host import look_up
    from longred.study.session import open_study

    with open_study(name, look_up, only=only) as opened:
        return opened


def _print_missing(opened: "OpenStudy", missing: "Sequence[PlannedCell]", as_json: bool) -> None:
    rows: dict[str, dict[str, Any]] = {}
    left = {cell.digest for cell in missing}
    for cell in opened.cells:
        row = rows.setdefault(
            f"{cell.panel}/{cell.variant}", {"finished": [], "missing": [], "command": cell.command}
        )
        row["missing" if cell.digest in left else "finished"].append(cell.seed)
    if as_json:
        typer.echo(json.dumps({"study": opened.name, "variants": rows}, indent=2))
        return
    for name, row in rows.items():
        seeds = f"seeds {', '.join(map(str, row['missing']))}" if row["missing"] else "nothing"
        typer.echo(f"  {name:<32} {len(row['finished'])} finished, to run: {seeds}")
    typer.echo(f"{len(missing)} runs would start; nothing is refused")


def _print_result(opened: "OpenStudy", output: Path | None, as_json: bool) -> None:
    from longred.cli.results import print_markdown
    from longred.store.artifacts import storage_errors
    from longred.study.build import commit
    from longred.study.page import write
    from longred.study.tables import markdown

    result = opened.result()
    if not result.num_cells:
        raise ConfigError(
            f"{opened.given}: no run of this study is finished in {opened.store.root}; "
            f"`longred study {opened.given}` runs it"
        )
    folder = output
    if result.num_cells == result.num_planned and opened.is_whole:
        artifact, result = commit(opened.store, opened.study, result)
        folder = folder or artifact.folder
    folder = folder or opened.logs / "so-far"
    if not (folder / "index.html").is_file() or output or not result.digest:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write(result, folder)
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2))
        return
    print_markdown(markdown(result))
    missing = result.num_planned - result.num_cells
    print_facts(
        {
            "runs": f"{result.num_cells} of {result.num_planned}"
            + (f"; `longred study {opened.given}` runs the rest" if missing else ""),
            "took": f"{duration(result.seconds)}, summed over all runs",
            "page": str(folder / "index.html"),
        }
    )
