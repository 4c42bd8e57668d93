"""Verbs for the local services."""

from typing import Annotated

import typer

from longred.cli.common import StoreOption, open_store


def up(
    store: StoreOption = None,
    prefect_port: Annotated[int, typer.Option(help="port of Prefect's server")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="port of MLflow's server")] = 5000,
) -> None:
    """Start Prefect, MLflow and a worker here, and apply the deployments."""
    from longred import services
    from longred.flow_host import repository

    state = services.up(
        open_store(store).root,
        repository(),
        ports={"prefect": prefect_port, "mlflow": mlflow_port},
        say=lambda text: typer.echo(text, err=True),
    )
    typer.echo(services.describe(state, repository()))


def down(store: StoreOption = None) -> None:
    """Stop what `up` started."""
    from longred import services

    stopped = services.down(open_store(store).root)
    typer.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


def status(store: StoreOption = None) -> None:
    """Show which services run, and the newest run."""
    from longred import services
    from longred.runs import list_runs, load_run

    folder = open_store(store)
    for line in services.status(folder.root):
        typer.echo(line)
    if list_runs(folder):
        record = load_run(folder)
        typer.echo(f"{'latest run':<12} {record.status:<10} {record.id}")
