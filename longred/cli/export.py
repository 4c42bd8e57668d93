"""`longred export`: writes a trained student as a model folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longred.cli.common import StoreOption, open_store

if TYPE_CHECKING:
    from longred.export.check import Finding
    from longred.export.write import Exported


def export(
    run_id: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="a run's id, `latest`, RUN/METHOD, or a training artifact's name"
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a new folder for the model")],
    method: Annotated[
        str | None,
        typer.Option(help="the student's method (default: the recipe's training.method)"),
    ] = None,
    step: Annotated[
        str, typer.Option(help="training step: last, the number of a kept step, or best")
    ] = "last",
    by: Annotated[
        str | None,
        typer.Option(
            help="metric for --step best: short_average (default), retention, ruler, similarity, …"
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(help="dtype of the weights: bfloat16, or `trained` for the training dtype"),
    ] = "bfloat16",
    check: Annotated[
        bool, typer.Option("--check", help="load the model with transformers 5 and 4 and compare")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    store: StoreOption = None,
) -> None:
    """Write a run's student as a folder for Hugging Face, vLLM, SGLang and llama.cpp."""
    from longred.cli.resolve import find_student
    from longred.errors import ConfigError
    from longred.export.check import check_export
    from longred.export.write import export_student

    if by is not None and step != "best":
        raise ConfigError(f"--by: chooses a step by {by}, which needs --step best")
    opened = open_store(store)
    run, named = find_student(opened, run_id)
    if method and named and method != named:
        raise ConfigError(f"--method: {method} is not the method that {run_id} names, {named}")
    exported = export_student(
        opened,
        run,
        folder,
        method=method or named,
        step=step,
        by=by or "short_average",
        dtype=dtype,
    )
    if not as_json:
        _print_export(exported)
    findings = []
    for finding in check_export(exported) if check else ():
        findings.append(finding)
        if not as_json:
            _print_finding(finding)
    if as_json:
        typer.echo(json.dumps(_summary(exported, findings), indent=2))
    else:
        _print_serving(exported)


def _print_export(exported: "Exported") -> None:
    dtype = str(exported.dtype).removeprefix("torch.")
    typer.echo(f"model    {exported.folder}  ({exported.size_bytes / 1e9:.3f} GB, {dtype})")
    at = "" if exported.step is None else f" after step {exported.step}"
    typer.echo(f"student  {exported.method}{at}, {exported.source}")


def _print_finding(finding: "Finding") -> None:
    verdict = {True: "ok", False: "WRONG", None: "-"}[finding.passed]
    place = f"transformers {finding.version}"
    typer.echo(f"check    {verdict:<5}  {place:<20} {finding.what}: {finding.text}")


def _print_serving(exported: "Exported") -> None:
    from longred.export.serving import serve_commands, serving_notes
    from longred.models.load import load_config

    config = load_config(exported.folder)
    typer.echo("")
    for name, commands in serve_commands(config, exported.folder).items():
        for command in commands:
            typer.echo(f"{name:<13}{command}")
    for note in serving_notes(config):
        typer.echo(f"note: {note}")


def _summary(exported: "Exported", findings: "list[Finding]") -> dict[str, Any]:
    from dataclasses import asdict

    from longred.export.serving import serve_commands, serving_notes
    from longred.models.load import load_config

    config = load_config(exported.folder)
    return {
        "folder": str(exported.folder),
        "method": exported.method,
        "step": exported.step,
        "training": exported.trained.digest,
        "dtype": str(exported.dtype).removeprefix("torch."),
        "size_bytes": exported.size_bytes,
        "checks": [asdict(finding) for finding in findings],
        "commands": serve_commands(config, exported.folder),
        "notes": serving_notes(config),
    }
