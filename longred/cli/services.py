"""Verbs for the local services: up, down, status, deploy, doctor, reap."""

import json
import os
from dataclasses import asdict
from typing import Annotated

import typer

from longred.cli.common import StoreOption, open_store


def up(
    store: StoreOption = None,
    prefect_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="port of Prefect's server (default: 4200, or a free one)"
        ),
    ] = None,
    mlflow_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="port of MLflow's server (default: 5000, or a free one)"
        ),
    ] = None,
    gpus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="0,1",
            help="GPUs of one worker; repeat for more workers (default: all GPUs, one worker)",
        ),
    ] = None,
) -> None:
    """Start Prefect, MLflow, a worker and a reaper, and apply the deployments."""
    from longred.cli.flow_host import repository
    from longred.services import servers as services

    state = services.up(
        open_store(store).root,
        repository(),
        ports={"prefect": prefect_port, "mlflow": mlflow_port},
        say=lambda text: typer.echo(text, err=True),
        gpu_sets=gpus or (),
    )
    typer.echo(services.describe(state, repository()))


def deploy(store: StoreOption = None) -> None:
    """Apply the deployments to Prefect's server."""
    from longred.cli.flow_host import repository
    from longred.errors import PreflightError
    from longred.services import servers as services
    from longred.services.prefect_api import chosen_api

    root = open_store(store).root
    api = chosen_api() or services.prefect_url(root)
    if api is None:
        raise PreflightError(
            "no Prefect server runs here; `longred up` starts one, or set PREFECT_API_URL to the "
            "address of another, such as http://HOST:4200/api"
        )
    for name in services.deploy(root, repository(), api):
        typer.echo(name)


def down(store: StoreOption = None) -> None:
    """Stop the services that `up` started."""
    from longred.services import servers as services

    stopped = services.down(open_store(store).root)
    typer.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


def doctor(
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Check versions, store, disk, services, GPU and kernels; print what to fix."""
    from longred.cli.flow_host import repository
    from longred.config import StoreConfig
    from longred.errors import PreflightError
    from longred.runs.record import STORE_VARIABLE
    from longred.services.doctor import examine
    from longred.store.artifacts import Store

    # A store that is a file is one finding among others here.
    opened = Store(store or os.environ.get(STORE_VARIABLE) or StoreConfig().path)
    findings = []
    for finding in examine(opened, repository()):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{finding.level:<5} {finding.name:<13} {finding.text}")
            if finding.advice:
                typer.echo(f"{'':<19} -> {finding.advice}")
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(PreflightError.exit_code)


def reap(
    store: StoreOption = None,
    every: Annotated[
        float | None,
        typer.Option(
            min=1.0, metavar="SECONDS", help="repeat at this interval, as `longred up` does"
        ),
    ] = None,
) -> None:
    """Close dead runs on disk, in MLflow and in Prefect."""
    import time

    from longred.services import reap as closing
    from longred.services import servers as services
    from longred.services.prefect_api import chosen_api

    opened = open_store(store)
    said: set[str] = set()

    def find_api() -> str | None:
        return chosen_api() or services.prefect_url(opened.root)

    def warn(text: str) -> None:
        if text not in said:
            said.add(text)
            typer.echo(text, err=True)

    closed = closing.reap(opened, find_api, warn)
    for line in closed or ([] if every else ["nothing to close"]):
        typer.echo(line)
    while every:
        time.sleep(every)
        for line in closing.reap(opened, find_api, warn):
            typer.echo(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}")


def status(store: StoreOption = None) -> None:
    """Print the running services, the latest run and newer ones that are not finished."""
    from longred.runs.record import mark_lost, newest_runs
    from longred.services import servers as services

    opened = open_store(store)
    for line in services.status(opened.root):
        typer.echo(line)
    newer = []
    for record in newest_runs(opened):
        if record.status == "finished":
            typer.echo(f"{'latest run':<12} {record.status:<10} {record.id}")
            break
        newer.append(mark_lost(opened, record))
    for record in newer[:3][::-1]:
        typer.echo(f"{'not finished':<12} {record.status:<10} {record.id}")
