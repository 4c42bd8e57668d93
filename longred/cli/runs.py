"""Verbs that run the pipeline and print runs: demo, run, show."""

import json
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longred.cli.common import Overrides, StoreOption, open_store, print_facts, print_table
from longred.errors import ConfigError, Stopped
from longred.progress import duration, size
from longred.runs.scope import Scope

if TYPE_CHECKING:
    from longred.runs.record import RunRecord, StageRecord
    from longred.stages.pilot import Pilot
    from longred.store.artifacts import Store


SUMMARY = ("recipe", "digest", "status", "overrides", "origin", "part", "prefect_url", "mlflow_url")
"""Fields of a run's record that `show --json` prints."""


def demo(overrides: Overrides = None, store: StoreOption = None) -> None:
    """Run the whole pipeline on the small model shipped with longred."""
    from longred.cli.resolve import use_store

    use_store(store, overrides or [])
    _run("demo", overrides or [])


def run(
    recipe: Annotated[
        str,
        typer.Argument(help="a packaged recipe's name, a YAML file, or an earlier run (`latest`)"),
    ],
    overrides: Overrides = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="STAGE", help="run only this stage, on existing artifacts"),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="run this stage and all later ones again"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print which stages would run and why; write nothing")
    ] = False,
    pilot: Annotated[
        int | None,
        typer.Option(
            "--pilot", metavar="STEPS", help="train this many steps and say whether to go on"
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(
            "--price-per-gpu-hour", min=0.0, help="with --pilot: also print what the rest costs"
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="with --dry-run or --pilot: print JSON")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Run the pipeline on a recipe; finished stages are reused."""
    from longred.cli.resolve import pin_recipe, use_store

    use_store(store, overrides or [])
    recipe = pin_recipe(recipe, overrides or [])
    if pilot is not None:
        if only or start or dry_run:
            raise ConfigError("--pilot: cannot be combined with --only, --from or --dry-run")
        _pilot(recipe, overrides or [], pilot, price, as_json)
        return
    if price is not None:
        raise ConfigError("--price-per-gpu-hour: is read with --pilot only; `longred plan` has it")
    scope = Scope(only=only, start=start, is_dry=dry_run)
    if dry_run:
        _dry_run(recipe, overrides or [], scope, as_json)
    else:
        _run(recipe, overrides or [], scope)


def show(
    run_id: Annotated[
        str, typer.Argument(metavar="RUN", help="a run's id or its start, or `latest`")
    ] = "latest",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    store: StoreOption = None,
) -> None:
    """Print a run: its stages, scores and report page."""
    from longred.cli.resolve import find_run

    record = find_run(open_store(store), run_id, says_which=False)
    if as_json:
        typer.echo(json.dumps(_summary(record), indent=2))
    else:
        _print_run(record)


def _dry_run(recipe: str, overrides: list[str], scope: Scope, as_json: bool) -> None:
    """Print which stages of the pipeline would run; refuse what these would refuse."""
    from longred.cli.cost_tables import wrap
    from longred.cli.flow_host import dry_run_pipeline
    from longred.runs.record import load_config
    from longred.runs.session import Watcher, run_options
    from longred.stages.preflight import Preflight, claimed_window, refuse_all

    watcher = Watcher()
    with run_options(scope=scope, listener=watcher):
        dry_run_pipeline(recipe, overrides)
    stages = watcher.stages
    fates = [scope.fate(stage.stage, stage.reason) for stage in stages]
    running = [stage for stage, fate in zip(stages, fates, strict=True) if fate == "runs"]
    config = load_config(recipe, overrides)
    methods = _trained(config.training.methods(), running)
    works = [Path(stage.work) for stage in running if stage.work]
    asked = Preflight(config, {stage.stage for stage in running}, methods, works=works)
    if as_json:
        keys = ("name", "stage", "digest", "reason")
        rows = [
            {**{key: getattr(stage, key) for key in keys}, "fate": fate, "runs": fate == "runs"}
            for stage, fate in zip(stages, fates, strict=True)
        ]
        typer.echo(json.dumps(rows, indent=2))
    else:
        for stage, fate in zip(stages, fates, strict=True):
            typer.echo(
                f"  {stage.name:<22} {fate:<8} {stage.digest}  {stage.reason or ''}".rstrip()
            )
        typer.echo(f"{len(running)} of {len(stages)} would run")
    missing = [stage.name for stage, fate in zip(stages, fates, strict=True) if fate == "missing"]
    if missing:
        raise ConfigError(
            f"--only {scope.only}: {missing[0]} is not made yet; run it first, or leave out --only"
        )
    warnings = refuse_all(asked) if running else []
    if not as_json:
        if "extension" in asked.stages or "training" in asked.stages:
            typer.echo(wrap(claimed_window(asked)))
        typer.echo("nothing is refused")
    for warning in warnings:
        typer.echo(wrap(f"warning: {warning}"), err=as_json)


def _trained(methods: Sequence[str], stages: "Sequence[StageRecord]") -> list[str]:
    """Return the methods that some of the stages train, at whatever window."""
    names = [stage.name.partition("/")[2] for stage in stages if stage.stage == "training"]
    # At an intermediate window, the name of a training ends in the window.
    trained = {re.sub(r"-[0-9]+$", "", name) for name in names}
    return [method for method in methods if method in trained]


def _run(recipe: str, overrides: list[str], scope: Scope | None = None) -> None:
    """Run the pipeline in this process, then print its scores and where to look next."""
    from longred.cli.flow_host import reuse_pipeline, run_pipeline
    from longred.cli.terminal import Terminal
    from longred.runs.record import load_config, load_run
    from longred.runs.session import run_options

    config = load_config(recipe, overrides)
    store = open_store(config.store.path)
    try:
        with run_options(scope=scope, listener=Terminal()):
            run_id = reuse_pipeline(config, recipe, overrides) or run_pipeline(
                store, recipe, overrides
            )
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT) from None
    record = load_run(store, run_id)
    _print_scores(record)
    _print_end(record, store)


def _pilot(
    recipe: str, overrides: list[str], num_steps: int, price: float | None, as_json: bool
) -> None:
    """Train the first steps and print the measurements next to the plan."""
    from longred.runs.record import load_config
    from longred.stages.pilot import run_pilot

    config = load_config(recipe, overrides)
    found = run_pilot(
        config,
        num_steps,
        store=open_store(config.store.path),
        tell=lambda text: typer.echo(text, err=True),
        price_per_gpu_hour=price,
    )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print_pilot(found)


def _print_pilot(found: "Pilot") -> None:
    planned, measured = found.planned, found.measured
    rows = [
        ("s a step", planned.step_seconds, measured.step_seconds, "{:,.2f}".format),
        ("tokens/s", planned.tokens_per_second, measured.tokens_per_second, "{:,.0f}".format),
        ("MFU", planned.mfu, measured.mfu, "{:,.2f}".format),
        ("peak memory", planned.memory_bytes, measured.peak_memory_bytes, size),
    ]
    typer.echo(f"{found.method}, steps {measured.first_step} to {measured.last_step}\n")
    print_table(
        ("", "planned", "measured", "off by"),
        [[name, text(p), text(m), f"{m / p - 1:+.0%}"] for name, p, m, text in rows],
    )
    print_table(
        ("loss", "first steps", "last steps"),
        [
            [key.removeprefix("train/"), f"{a:.4f}", f"{b:.4f}"]
            for key, (a, b) in measured.losses.items()
        ],
    )
    money = "" if found.price is None else f", which cost {found.price:,.2f}"
    hours = found.remaining_gpu_hours
    # Processes on a CPU share it.
    whole = f"{hours:,.2f} GPU hours" if found.on_gpu else duration(hours * 3600)
    typer.echo(
        f"remaining   {duration(found.remaining_seconds)} of training, "
        f"{whole} with profiling and evaluation{money}"
    )
    typer.echo("no-go" if found.reasons else "go          no problem found")
    for reason in found.reasons:
        typer.echo(f"  {reason}")
    typer.echo("`longred run` with the same settings continues after the last of these steps")


def _summary(record: "RunRecord") -> dict[str, Any]:
    """Return the JSON output of `show --json`."""
    from longred.store.artifacts import read_json

    report = _report_folder(record)
    stages = {
        name: {key: value for key, value in asdict(stage).items() if key not in ("name", "work")}
        for name, stage in record.last_attempts().items()
    }
    return {
        "run": record.id,
        **{key: getattr(record, key) for key in SUMMARY},
        "stages": stages,
        "scores": read_json(report / "scores.json") if report else {},
    }


def _report_folder(record: "RunRecord") -> Path | None:
    """Return the folder of a run's report; None if it has no report."""
    stage = record.last_attempts().get("report")
    return Path(stage.path) if stage and stage.path else None


def _print_run(record: "RunRecord") -> None:
    facts = {
        "run": f"{record.id}  ({record.status})",
        "recipe": " ".join([record.recipe, *record.overrides]),
        "from": record.origin,
        "part": record.part,
        "digest": record.digest,
        "Prefect": record.prefect_url,
        "MLflow": record.mlflow_url,
        "error": record.error,
    }
    # On a terminal the folder of the artifacts once, so that a stage takes one line.
    paths = [Path(stage.path) for stage in record.stages if stage.path and stage.stage != "model"]
    folder = paths[-1].parent if paths and sys.stdout.isatty() else None
    print_facts({**facts, "in": str(folder) if folder else None})
    for name, stage in record.last_attempts().items():
        seconds = "" if stage.seconds is None else f"{stage.seconds:.1f} s"
        path = stage.path
        if path and folder and Path(path).parent == folder:
            path = Path(path).name
        typer.echo(f"  {name:<22} {stage.status:<8} {seconds:>10}  {path or ''}".rstrip())
    _print_scores(record)


def _print_scores(record: "RunRecord") -> None:
    """Print the scores of a run: of its report, or of its evaluations if the report is stale."""
    from longred.cli.results import print_markdown

    report = _report_folder(record)
    if report is not None:
        table = report / "table.md"
        if table.is_file():
            typer.echo("")
            print_markdown(table.read_text(encoding="utf-8"))
        print_facts({"page": str(report / "index.html")})
        return
    from longred.report.compare import evaluated

    comparison = evaluated(record)
    if comparison is None:
        return
    from longred.report.tables import markdown_page

    typer.echo("")
    print_markdown(markdown_page(comparison))
    stage = record.last_attempts().get("report")
    what = "is stale: these scores are newer" if stage else "is not written"
    print_facts({"report": f"{what}; `longred run {record.id} --only report` writes it"})


def _print_end(record: "RunRecord", store: "Store") -> None:
    """Print how long a run took, on what, and where to look next."""
    from longred.services import servers as services

    stages = list(record.last_attempts().values())
    num_ran = sum(stage.status == "ran" for stage in stages)
    num_reused = sum(stage.status == "skipped" for stage in stages)
    seconds = (record.finished or record.started) - record.started
    facts = {
        "done": f"in {duration(seconds)}; stages: {num_ran} ran, {num_reused} reused",
        "on": _hardware(record),
        "store": str(store.root),
        "again": f"longred show {record.id}",
    }
    if any(stage.stage == "training" and stage.path for stage in stages):
        facts["export"] = "longred export latest FOLDER  (the student for Hugging Face, vLLM, …)"
    facts["compare"] = "longred compare RUN latest  (with an earlier run)"
    urls = {name: service.url for name, service in services.load(store.root).items()}
    names = {"mlflow": "MLflow", "prefect": "Prefect"}
    found = [f"{names[name]} {url}" for name, url in urls.items() if url and name in names]
    facts["pages"] = ", ".join(found) or "longred up  (starts MLflow and Prefect, with all runs)"
    print_facts(facts)


def _hardware(record: "RunRecord") -> str:
    """Return what the students of a run were trained on; empty if it has none."""
    from longred.store.artifacts import read_json

    found: dict[str, None] = {}
    for stage in record.last_attempts().values():
        if stage.stage == "training" and stage.path:
            where = read_json(Path(stage.path) / "training.json").get("environment", {})
            number = where.get("num_processes", 1)
            times = f"{number} x " if number > 1 else ""
            found[f"{times}{where.get('hardware')} ({where.get('device')})"] = None
    return ", ".join(found)
