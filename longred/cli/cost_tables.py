"""Prints the cost of a recipe within 80 columns."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from longred.cli.common import print_table
from longred.progress import duration, size

WIDTH = 80


def wrap(text: str, indent: str = "") -> str:
    """Return a text in lines of up to 80 columns; words and settings are never cut."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent or "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def show_cost(values: Mapping[str, Any]) -> None:
    """Print whether the trainings fit, and what they cost.

    Args:
        values: the JSON output of `longred plan`.
    """
    cost = values["cost"]
    device, trainings = cost["device"], cost["trainings"]
    typer.echo(wrap(_verdict(cost, is_refused=values["verdict"]["verdict"] == "refused")))
    _show_advice(cost)
    how = "measured here" if device["is_measured"] else "published figures; --calibrate measures"
    typer.echo("\ncost\n")
    typer.echo(f"model       {cost['num_parameters']:,} parameters")
    typer.echo(f"device      {device['name']}, {size(device['memory_bytes'])}; {how}")
    typer.echo(
        f"products    {_rate(device['matmul_flops'])} (peak {_rate(device['peak_flops'])})\n"
    )
    places = "GPUs" if device["kind"] == "cuda" else "processes"
    print_table(
        ("training", places, "tokens", "s a step", "tokens/s", "epochs", "memory", "time"),
        [_row(one, values["epochs"]) for one in trainings],
    )
    for name in ("extension", "profiling", "evaluation"):
        stage = cost[name]
        if name == "extension" and not stage["tokens"]:
            # Only a search reads text.
            continue
        typer.echo(f"{name:<12}{_millions(stage['tokens'])} tokens, {duration(stage['seconds'])}")
    typer.echo(f"all         {_total(cost)}")
    typer.echo(f"epochs      {_epochs(values)}\n")
    _show_parts(trainings)
    print_table(
        ("training", "FLOPs a step", "MFU", "GFLOPs a token:", "long", "short", "original"),
        [
            [
                one["method"],
                f"{one['flops']:.2e}",
                f"{one['mfu']:.2f}",
                "",
                *(_gflops(one, bucket) for bucket in ("long", "short", "original")),
            ]
            for one in trainings
        ],
    )
    typer.echo("FLOPs count causal attention, and no recomputation.\n")


def _verdict(cost: Mapping[str, Any], *, is_refused: bool) -> str:
    """Return in one sentence whether the largest training fits."""
    most = max(cost["trainings"], key=lambda one: one["memory_bytes"])
    needed, limit, reserve = most["memory_bytes"], most["limit_bytes"], most["reserve_bytes"]
    name = cost["device"]["name"]
    place = name if cost["device"]["kind"] == "cpu" else f"each of {most['num_processes']} {name}"
    if cost["device"]["kind"] != "cpu" and most["num_processes"] == 1:
        place = f"one {name}"
    kept = f", of which {size(reserve)} are kept free" if reserve else ""
    facts = f"{most['method']} needs {size(needed)} and {place} has {size(limit)}{kept}"
    if cost["fits"]:
        return f"memory fits: {facts}" if is_refused else f"fits: {facts}; in all {_total(cost)}"
    if needed * (1 - cost["tolerance"]) <= limit:
        return (
            f"does not fit: {facts}; that is within the error of the estimate "
            f"({cost['tolerance']:.0%}), so a run would start with a warning"
        )
    return f"does not fit: {facts}"


def _show_advice(cost: Mapping[str, Any]) -> None:
    if cost["fits"]:
        return
    for remedy in cost["advice"]:
        words = f" ({remedy['words']})" if remedy["words"] else ""
        typer.echo("\n" + wrap(f"fits in {size(remedy['memory_bytes'])} with{words}:", "  "))
        for setting in _lines(remedy["settings"]):
            typer.echo(f"    {setting}")
    if not cost["advice"]:
        kind = "GPU" if cost["device"]["kind"] == "cuda" else "machine"
        typer.echo(
            wrap(
                f"no setting is enough: use a {kind} with more memory (--device), a smaller model, "
                "or a smaller target_window",
                "  ",
            )
        )


def _lines(settings: Sequence[str]) -> list[str]:
    """Return settings joined into lines that fit."""
    return textwrap.wrap(
        " ".join(settings), WIDTH - 4, break_long_words=False, break_on_hyphens=False
    )


def _row(one: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]]) -> list[str]:
    most = [each["times"] for each in epochs if each["method"] == one["method"]]
    return [
        one["method"],
        str(one["num_processes"]),
        _millions(one["tokens"]),
        _number(one["step_seconds"]),
        f"{one['tokens_per_second']:,.0f}",
        f"{max(most):,.3g}" if most else "-",
        size(one["memory_bytes"]),
        duration(one["seconds"]),
    ]


def _total(cost: Mapping[str, Any]) -> str:
    """Return the time of all stages on one device, and its price."""
    hours = cost["gpu_hours"]
    money = ""
    if "price" in cost:
        money = f", {cost['price']:,.2f} at {cost['price_per_gpu_hour']:g} an hour"
    if cost["device"]["kind"] == "cpu":
        return f"{duration(hours * 3600)}{money}"
    if hours < 1:
        minutes = max(1, round(hours * 60))
        return f"{minutes} GPU minute{'s' * (minutes > 1)}{money}"
    return f"{hours:,.1f} GPU hours{money}"


def _epochs(values: Mapping[str, Any]) -> str:
    most: dict[str, float] = {}
    for one in values["epochs"]:
        most[one["bucket"]] = max(most.get(one["bucket"], 0.0), one["times"])
    read = ", ".join(f"{bucket} {times:,.3g}" for bucket, times in most.items())
    return f"{read or '-'} (training.max_epochs={values['max_epochs']:g})"


def _show_parts(trainings: Sequence[Mapping[str, Any]]) -> None:
    """Print the memory of one process and the disk space by part."""
    parts = list(dict.fromkeys(part for one in trainings for part in one["memory"]))
    used = [part for part in parts if any(one["memory"][part] for one in trainings)]
    rows = [[part, *(_amount(one["memory"][part]) for one in trainings)] for part in used]
    rows.append(["all", *(size(one["memory_bytes"]) for one in trainings)])
    for name in ("reserve_bytes", "host_bytes"):
        if any(one[name] for one in trainings):
            label = name.removesuffix("_bytes")
            rows.append([label, *(_amount(one[name]) for one in trainings)])
    for name in ("checkpoints", "result"):
        rows.append([f"disk: {name}", *(_amount(one["disk"][name]) for one in trainings)])
    print_table(("memory of a process", *(one["method"] for one in trainings)), rows)


def _amount(num_bytes: float) -> str:
    return size(num_bytes) if num_bytes else "-"


def _number(value: float) -> str:
    """Return a number with three digits, or all of a larger one's."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _millions(count: float) -> str:
    """Return a count; from a million on in millions."""
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,.0f}"


def _gflops(one: Mapping[str, Any], bucket: str) -> str:
    flops = one["flops_by_bucket"].get(bucket)
    return "-" if flops is None else f"{flops / 1e9:,.3g}"


def _rate(flops: float) -> str:
    return f"{flops / 1e12:,.3g} TFLOP/s"
