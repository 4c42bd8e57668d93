"""`longred plan`: estimates the data and the cost of a recipe before anything is written."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longred.cli.common import Overrides, StoreOption, print_table
from longred.errors import ConfigError, PreflightError

if TYPE_CHECKING:
    from longred.config import RunConfig

GIB = 2**30


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
        typer.Option("--price-per-gpu-hour", min=0.0, help="also print the cost in money"),
    ] = None,
    section: Annotated[
        str | None, typer.Option("--only", metavar="SECTION", help="only data, or only cost")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    store: StoreOption = None,
) -> None:
    """Estimate a recipe's data, time, memory and money, and whether it fits; write nothing.

    Works offline for the packaged recipes, without the part on their data.
    """
    from longred.cli.resolve import pin_recipe, use_store
    from longred.data.estimate import estimate, to_json
    from longred.models.load import resolve_model
    from longred.runs.record import load_config

    if section is not None and section not in SECTIONS:
        raise ConfigError(f"--only: {section!r} is not one of {', '.join(SECTIONS)}")
    processes = [] if gpus is None else [f"training.parallel.num_processes={gpus}"]
    use_store(store, overrides or [])
    recipe = pin_recipe(recipe, overrides or [])
    config = load_config(recipe, [*(overrides or []), *processes])
    sections: dict[str, Any] = {}
    if section != "cost":
        try:
            folder = resolve_model(config.model.path, config.model.revision, weights=False)
            sections["data"] = to_json(estimate(config.data, folder))
        except PreflightError as error:
            # The cost part needs neither hub nor data; print it alone.
            if section == "data":
                raise
            sections["data"] = {"left_out": str(error).partition("; ")[0]}
    if section != "data":
        sections["cost"] = _plan_cost(config, device, measure, price)
    if as_json:
        typer.echo(json.dumps(sections, indent=2))
        return
    for name, values in sections.items():
        if "left_out" in values:
            typer.echo(f"{name:<12}skipped: {values['left_out']}\n")
            continue
        typer.echo(f"{name}\n")
        SECTIONS[name](values)


def _plan_cost(
    config: "RunConfig", device: str, measure: bool, price: float | None
) -> dict[str, Any]:
    from longred.cost import recipe

    shape = recipe.shape_of_model(config)
    speeds = recipe.choose_speeds(config, shape, device=device, measure=measure)
    values = recipe.plan_recipe(config, shape, speeds).to_json()
    if price is not None:
        values["price"] = values["gpu_hours"] * price
    return values


def _show_cost(values: Mapping[str, Any]) -> None:
    device, trainings = values["device"], values["trainings"]
    how = "measured here" if device["is_measured"] else "published figures; --calibrate measures"
    typer.echo(f"model       {values['num_parameters']:,} parameters")
    typer.echo(
        f"device      {device['name']}, {device['memory_bytes'] / GIB:,.0f} GiB, {how}: products "
        f"{_rate(device['matmul_flops'])}, peak {_rate(device['peak_flops'])}\n"
    )
    print_table(
        ("training", "GPUs", "tokens", "FLOPs a step", "MFU", "s a step", "tokens/s", "hours"),
        [
            [
                one["method"],
                str(one["num_processes"]),
                f"{one['tokens']:,}",
                f"{one['flops']:.2e}",
                f"{one['mfu']:.2f}",
                f"{one['step_seconds']:,.2f}",
                f"{one['tokens_per_second']:,.0f}",
                f"{one['seconds'] / 3600:,.2f}",
            ]
            for one in trainings
        ],
    )
    print_table(
        ("GFLOPs a token", "long", "short", "original"),
        [
            [one["method"], *(_gflops(one, bucket) for bucket in ("long", "short", "original"))]
            for one in trainings
        ],
    )
    _show_memory(trainings)
    for name in ("profiling", "evaluation"):
        stage = values[name]
        typer.echo(
            f"{name:<12}{stage['tokens']:,.0f} tokens, {stage['flops']:.2e} FLOPs, "
            f"{stage['seconds'] / 3600:,.2f} hours"
        )
    money = f", {values['price']:,.2f} in money" if "price" in values else ""
    typer.echo(f"all         {values['gpu_hours']:,.2f} GPU hours{money}")
    typer.echo("FLOPs count causal attention, and no recomputation")


def _show_memory(trainings: Sequence[Mapping[str, Any]]) -> None:
    parts = list(dict.fromkeys(part for one in trainings for part in one["memory"]))
    used = [part for part in parts if any(one["memory"][part] for one in trainings)]
    has_reserve = any(one["reserve_bytes"] for one in trainings)
    print_table(
        ("GiB a GPU", *(one["method"] for one in trainings)),
        [
            *([part, *(_gib(one["memory"][part]) for one in trainings)] for part in used),
            ["all", *(_gib(one["memory_bytes"]) for one in trainings)],
            *([["reserve", *(_gib(one["reserve_bytes"]) for one in trainings)]] * has_reserve),
            ["host", *(_gib(one["host_bytes"]) for one in trainings)],
            ["checkpoints", *(_gib(one["disk"]["checkpoints"]) for one in trainings)],
            ["result", *(_gib(one["disk"]["result"]) for one in trainings)],
        ],
    )
    for one in trainings:
        if one["fits"]:
            typer.echo(f"{one['method']}: fits")
            continue
        reserved = f", {_gib(one['reserve_bytes'])} of it reserved" if one["reserve_bytes"] else ""
        typer.echo(
            f"{one['method']}: does not fit into {one['limit_bytes'] / GIB:,.1f} GiB{reserved}"
        )
        for step in one["advice"]:
            how = "or alone" if step["is_alone"] else "with"
            fits = ", fits" if step["fits"] else ""
            typer.echo(f"  {how} {step['setting']}: {_gib(step['memory_bytes'])} GiB{fits}")
        if not one["advice"] or not one["advice"][-1]["fits"]:
            typer.echo("  more GPUs: --gpus; or a smaller target_window")
    typer.echo("")


def _gflops(one: Mapping[str, Any], bucket: str) -> str:
    flops = one["flops_by_bucket"].get(bucket)
    return "-" if flops is None else f"{flops / 1e9:,.3g}"


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def _rate(flops: float) -> str:
    return f"{flops / 1e12:,.3g} TFLOP/s"


def _show_data(sources: Sequence[dict[str, Any]]) -> None:
    def text(count: int | None) -> str:
        return "as needed" if count is None else f"{count:,}"

    print_table(
        ("source", "shards", "text bytes", "bucket", "needed tokens", "available", "verdict"),
        [
            [
                source["source"],
                text(source["shards"]),
                text(source["num_bytes"]),
                bucket["bucket"],
                f"{bucket['needed_tokens']:,}",
                text(bucket["available_tokens"]),
                bucket["verdict"],
            ]
            for source in sources
            for bucket in source["buckets"]
        ],
    )
    for source in sources:
        typer.echo(
            f"{source['source']}: from {source['sampled_documents']:,} documents, "
            f"{source['sampled_tokens']:,} tokens, {source['rejected']:,} rejected rows"
        )
    typer.echo(
        "available: tokens of training documents that are long enough; a document fills one bucket"
    )


SECTIONS: dict[str, Callable[[Any], None]] = {"data": _show_data, "cost": _show_cost}
"""Parts of the plan: name → function that prints it."""
