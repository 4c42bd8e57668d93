"""`longred plan`: estimates the data and the cost of a recipe before anything is written."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longred.cli.common import Overrides, StoreOption
from longred.cli.cost_tables import show_cost, wrap
from longred.cli.data_table import show_data
from longred.errors import ConfigError, LongredError, PreflightError

if TYPE_CHECKING:
    from longred.config import RunConfig


def plan(
    recipe: Annotated[str, typer.Argument(help="a packaged recipe's name, a YAML file, or a run")],
    overrides: Overrides = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="number of GPUs (default: the recipe's)")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, or a GPU: a100-80gb, h100, h200, …")
    ] = "auto",
    measure: Annotated[
        bool,
        typer.Option("--calibrate", help="measure this machine first; always done on a CPU"),
    ] = False,
    price: Annotated[
        float | None,
        typer.Option("--price-per-gpu-hour", min=0.0, help="also print what it costs"),
    ] = None,
    section: Annotated[
        str | None, typer.Option("--only", metavar="SECTION", help="only data, or only cost")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    store: StoreOption = None,
) -> None:
    """Say whether a recipe would run, and what it costs in time, memory and money; write nothing.

    The first line is the verdict: fits, does not fit, or refused and why. Works offline for the
    packaged recipes, without the part on their data.
    """
    from longred.cli.resolve import pin_recipe, use_store
    from longred.runs.record import load_config

    if section is not None and section not in SECTIONS:
        raise ConfigError(f"--only: {section!r} is not one of {', '.join(SECTIONS)}")
    processes = [] if gpus is None else [f"training.parallel.num_processes={gpus}"]
    use_store(store, overrides or [])
    recipe = pin_recipe(recipe, overrides or [])
    config = load_config(recipe, [*(overrides or []), *processes])
    values: dict[str, Any] = {}
    problems: list[LongredError] = []
    if section != "data":
        is_elsewhere = gpus is not None or device != "auto"
        values, problems = _plan_cost(config, device, measure, price, is_elsewhere)
    if section != "cost":
        values["data"] = _plan_data(config, is_all=section is None)
        problems += [ConfigError(text) for text in _data_problems(values["data"])]
    values["verdict"] = _verdict_of(values, problems)
    if as_json:
        typer.echo(json.dumps(values, indent=2))
    else:
        _show(values)
    if problems:
        raise typer.Exit(problems[0].exit_code)


def _plan_cost(
    config: "RunConfig", device: str, measure: bool, price: float | None, is_elsewhere: bool
) -> tuple[dict[str, Any], list[LongredError]]:
    """Return the cost, epochs, window and warnings of a recipe, and what would be refused."""
    from longred.cost import epochs, recipe
    from longred.stages.preflight import Preflight, claimed_window, find_problems

    shape = recipe.shape_of_model(config)
    _, is_here = recipe.choose_device(config, shape, device=device, measure=measure)
    speeds = recipe.choose_speeds(config, shape, device=device, measure=measure)
    found = recipe.plan_recipe(config, shape, speeds)
    asked = Preflight(
        config,
        is_here=is_here and not is_elsewhere,
        reads_text=False,
        needs_model=False,
        checks_memory=found.fits,
    )
    problems, warnings = find_problems(asked)
    cost = found.to_json()
    if price is not None:
        cost["price"], cost["price_per_gpu_hour"] = cost["gpu_hours"] * price, price
    values: dict[str, Any] = {"cost": cost, "warnings": warnings}
    try:
        read = epochs.epochs_of(config)
        values["epochs"] = [{**one._asdict(), "times": one.times} for one in read]
        values["window"] = claimed_window(asked)
    except ConfigError:
        # It is among the problems.
        values.setdefault("epochs", [])
    values["max_epochs"] = config.training.max_epochs
    return values, problems


def _plan_data(config: "RunConfig", *, is_all: bool) -> Any:
    """Return what the sources can provide; or why that is unknown, which does not end a plan."""
    from longred.data.estimate import estimate, to_json
    from longred.models.load import resolve_model

    try:
        folder = resolve_model(config.model.path, config.model.revision, weights=False)
        return to_json(estimate(config.data, folder))
    except PreflightError as error:
        if not is_all:
            raise
        return {"left_out": str(error)}
    except ConfigError as error:
        return {"problem": str(error)}


def _data_problems(data: Any) -> list[str]:
    """Return what the data stage would refuse."""
    sources = [data] if isinstance(data, Mapping) else data
    found = [str(source["problem"]) for source in sources if source.get("problem")]
    return list(dict.fromkeys(found))


def _verdict_of(values: Mapping[str, Any], problems: Sequence[LongredError]) -> dict[str, Any]:
    """Return the verdict in one or two words, and the reasons of a refusal."""
    reasons = list(dict.fromkeys(map(str, problems)))
    fits = values.get("cost", {}).get("fits", True)
    return {"verdict": "refused" if reasons else "fits" if fits else "does not fit", "why": reasons}


def _show(values: Mapping[str, Any]) -> None:
    """Print a plan: the verdict, the cost, the data, then warnings."""
    verdict = values["verdict"]
    for reason in verdict["why"]:
        typer.echo(wrap(f"refused: {reason}"))
    if "cost" in values:
        show_cost(values)
    elif not verdict["why"]:
        typer.echo("fits\n")
    if isinstance(data := values.get("data"), list):
        typer.echo("data\n")
        show_data(data)
    elif data and "left_out" in data:
        typer.echo(wrap(f"data: not looked at, {data['left_out']}"))
    if "window" in values:
        typer.echo("\n" + wrap(values["window"]))
    for warning in values.get("warnings", []):
        typer.echo(wrap(f"warning: {warning}"))


SECTIONS: dict[str, Callable[[Any], None]] = {"data": show_data, "cost": show_cost}
"""Parts of the plan: name → function that prints it."""
