"""The command line: one verb for each thing a user does; results go to standard output only.

Heavy libraries are imported by the verbs that need them.
"""

import json
import logging
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longred.errors import LongredError, Stopped

if TYPE_CHECKING:
    from longred.artifacts import Store
    from longred.runs import RunRecord

app = typer.Typer(
    help="Extend a language model's context window and restore its short-text skill.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="changes to the recipe", metavar="[SECTION.KEY=VALUE]...")
]
StorePath = Annotated[str | None, typer.Option("--store", help="the store (default: outputs)")]


@app.command()
def demo(overrides: Overrides = None) -> None:
    """Run the whole pipeline on the small model that comes with longred."""
    _run("demo", overrides or [])


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="a packaged recipe's name, or a YAML file")],
    overrides: Overrides = None,
) -> None:
    """Run the pipeline on a recipe; what is finished already is not made again."""
    _run(recipe, overrides or [])


@app.command()
def show(
    run_id: Annotated[
        str, typer.Argument(metavar="RUN", help="a run's id, or `latest`")
    ] = "latest",
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
    store: StorePath = None,
) -> None:
    """Show a run: its stages, its scores and where its page is."""
    from longred.runs import load_run

    record = load_run(_store(store), run_id)
    if as_json:
        typer.echo(json.dumps(_summary(record), indent=2))
    else:
        _print_run(record)


@app.command()
def up(
    store: StorePath = None,
    prefect_port: Annotated[int, typer.Option(help="port of Prefect's server")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="port of MLflow's server")] = 5000,
) -> None:
    """Start Prefect, MLflow and a worker here, and apply the deployments."""
    from longred import services
    from longred.flow_host import repository

    state = services.up(
        _store(store).root,
        repository(),
        ports={"prefect": prefect_port, "mlflow": mlflow_port},
        say=lambda text: typer.echo(text, err=True),
    )
    typer.echo(services.describe(state, repository()))


@app.command()
def down(store: StorePath = None) -> None:
    """Stop what `up` started."""
    from longred import services

    stopped = services.down(_store(store).root)
    typer.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


@app.command()
def status(store: StorePath = None) -> None:
    """Show which services run, and the newest run."""
    from longred import services
    from longred.runs import list_runs, load_run

    folder = _store(store)
    for line in services.status(folder.root):
        typer.echo(line)
    if list_runs(folder):
        record = load_run(folder)
        typer.echo(f"{'latest run':<12} {record.status:<10} {record.id}")


def _run(recipe: str, overrides: list[str]) -> None:
    """Run the pipeline in this process, then print what came out."""
    from longred import services
    from longred.flow_host import run_pipeline
    from longred.runs import load_config, load_run
    from longred.session import listening
    from longred.terminal import Terminal

    config = load_config(recipe, overrides)
    store = _store(config.store.path)
    try:
        with listening(Terminal()):
            run_id = run_pipeline(store, recipe, overrides)
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT) from None
    _print_scores(load_run(store, run_id))
    urls = [service.url for service in services.load(store.root).values() if service.url]
    typer.echo(f"UIs      {' and '.join(urls) or 'longred up'}")


def _store(path: str | None) -> "Store":
    """Return the store that is named, else the environment's, else the default one."""
    from longred.artifacts import Store
    from longred.config import StoreConfig
    from longred.runs import STORE_VARIABLE

    return Store(path or os.environ.get(STORE_VARIABLE) or StoreConfig().path)


def _summary(record: "RunRecord") -> dict[str, Any]:
    """Return what `show --json` prints."""
    stages = {
        name: {key: value for key, value in asdict(stage).items() if key not in ("name", "work")}
        for name, stage in record.last_attempts().items()
    }
    return {
        "run": record.id,
        "recipe": record.recipe,
        "digest": record.digest,
        "status": record.status,
        "overrides": record.overrides,
        "stages": stages,
        "scores": _read_scores(record),
    }


def _report(record: "RunRecord") -> Path | None:
    """Return the folder of a run's report, if it has one."""
    stage = record.last_attempts().get("report")
    return Path(stage.path) if stage and stage.path else None


def _read_scores(record: "RunRecord") -> Any:
    from longred.artifacts import read_json

    report = _report(record)
    return read_json(report / "scores.json") if report else {}


def _print_run(record: "RunRecord") -> None:
    typer.echo(f"run      {record.id}  ({record.status})")
    typer.echo(f"recipe   {' '.join([record.recipe, *record.overrides])}")
    typer.echo(f"digest   {record.digest}")
    if record.error:
        typer.echo(f"error    {record.error}")
    for name, stage in record.last_attempts().items():
        seconds = "" if stage.seconds is None else f"{stage.seconds:.1f} s"
        typer.echo(f"  {name:<22} {stage.status:<8} {seconds:>10}  {stage.path or ''}")
    _print_scores(record)


def _print_scores(record: "RunRecord") -> None:
    report = _report(record)
    if report is None:
        return
    table = report / "table.md"
    if table.is_file():
        typer.echo("\n" + table.read_text(encoding="utf-8").rstrip() + "\n")
    typer.echo(f"page     {report / 'index.html'}")


def _end_on_sigterm(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def main() -> None:
    """Run the command line; an error that a user can act on is one message and its exit code."""
    signal.signal(signal.SIGTERM, _end_on_sigterm)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("longred: %(message)s"))
    logging.getLogger("longred").addHandler(handler)
    try:
        app()
    except LongredError as error:
        sys.stdout.flush()
        sys.stderr.write(f"longred: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
