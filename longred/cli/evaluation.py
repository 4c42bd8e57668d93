"""The verb that evaluates any checkpoint, outside of a pipeline."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longred.cli.common import StoreOption, open_store
from longred.errors import ConfigError

if TYPE_CHECKING:
    from longred.artifacts import Artifact, Store
    from longred.config import EvaluationConfig


def evaluate(
    models: Annotated[
        list[str], typer.Argument(help="`demo`, folders or hub names", metavar="MODEL...")
    ],
    original: Annotated[
        str | None, typer.Option(help="what retention and similarity are measured against")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="commit of models named on the hub")] = None,
    suite: Annotated[str, typer.Option(help="short tasks: a suite's name or YAML file")] = "demo",
    tasks: Annotated[str, typer.Option(help="of the suite, only these: a,b")] = "",
    capacities: Annotated[str, typer.Option(help="of the suite, only these: a,b")] = "",
    ruler: Annotated[str, typer.Option(help="RULER's lengths in tokens: 4096,8192")] = "",
    ruler_tasks: Annotated[str, typer.Option(help="RULER's tasks: a,b (default: all)")] = "",
    num_samples: Annotated[int, typer.Option(min=1, help="questions a task at most")] = 100,
    text: Annotated[
        Path | None, typer.Option(help="file or folder of text (default: Python's library)")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32")] = "bfloat16",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    num_processes: Annotated[int, typer.Option(min=1, help="one model and device each")] = 1,
    chat_template: Annotated[str, typer.Option(help="auto, true or false")] = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    beyond_window: Annotated[
        bool, typer.Option("--beyond-window", help="ask lengths that a model was not made for")
    ] = False,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="run code that models write")
    ] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="n/a for tasks whose data cannot be had")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="folder for a page with plots")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
    store: StoreOption = None,
) -> None:
    """Ask models the same frozen questions; what was answered before is not asked again."""
    from longred import stages
    from longred.config import ModelConfig
    from longred.evaluation.alone import check_lengths, evaluation_config, text_config

    lengths, place = _lengths(ruler), open_store(store)
    found = {
        name: stages.find_model(ModelConfig(path=path, revision=revision), store=place)
        for name, path in _names(models, original).items()
    }
    base = found.get("original") or next(iter(found.values()))
    if not beyond_window:
        check_lengths({n: m.folder for n, m in found.items() if n != "original"}, lengths)
    config = _validated(
        lambda: evaluation_config(
            base.folder,
            [model.folder for model in found.values()],
            lengths,
            ruler={
                "num_samples": num_samples,
                **({"tasks": _list(ruler_tasks)} if ruler_tasks else {}),
            },
            short={
                "suite": suite,
                "tasks": _list(tasks),
                "capacities": _list(capacities),
                "num_samples": num_samples,
                "limit": num_samples,
                "on_missing": "skip" if skip_missing else "error",
                "allow_code_execution": allow_code_execution,
            },
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            num_processes=num_processes,
            chat_template=chat_template,
            seed=seed,
        )
    )
    data = stages.prepare_data(text_config(base.folder, text, seed), base, store=place)
    samples = stages.freeze_samples(config, base, data, store=place)
    scores = _ask(config, found, base, samples, data, place)
    _show(config, scores, samples, report, as_json)


def _names(models: Sequence[str], original: str | None) -> dict[str, str]:
    """Return a name for each model: of its folder, numbered where two are alike."""
    found = {} if original is None else {"original": original}
    for path in models:
        name = Path(path).expanduser().resolve().name if Path(path).exists() else path
        name = name.replace("/", "--")
        if name in found:
            name = f"{name}-{len(found) + 1}"
        found[name] = path
    return found


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _lengths(text: str) -> list[int]:
    try:
        lengths = [int(part) for part in _list(text)]
    except ValueError:
        raise ConfigError(f"--ruler: {text} is not a list of lengths; e.g. 4096,8192") from None
    if any(length < 1 for length in lengths):
        raise ConfigError(f"--ruler: {text}: lengths are at least 1")
    return lengths


def _validated(make: Any) -> "EvaluationConfig":
    from pydantic import ValidationError

    try:
        config: EvaluationConfig = make()
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][-1]).replace("_", "-")
        raise ConfigError(f"--{option}: {first['msg']} (got {first['input']!r})") from None
    return config


def _ask(
    config: "EvaluationConfig",
    models: "Mapping[str, Artifact]",
    base: "Artifact",
    samples: "Artifact",
    data: "Artifact",
    store: "Store",
) -> "dict[str, Artifact]":
    from longred import stages
    from longred.score_board import ScoreBoard

    scores = {}
    with ScoreBoard(list(models)) as board:
        for name, model in models.items():
            scores[name] = stages.evaluate_model(
                config,
                name,
                model,
                base,
                samples,
                data,
                store=store,
                on_unit=lambda unit, result, name=name: board.add(name, unit, result),  # type: ignore[misc]
            )
    return scores


def _show(
    config: "EvaluationConfig",
    scores: "Mapping[str, Artifact]",
    samples: "Artifact",
    report: Path | None,
    as_json: bool,
) -> None:
    from longred.report.evaluation_page import compare, write_page
    from longred.report.tables import markdown_page

    folders = {name: artifact.folder for name, artifact in scores.items()}
    comparison = compare(config, folders)
    if report is not None:
        write_page(report, config, folders, samples.folder, comparison)
    if as_json:
        found = {
            name: {"scores": comparison.models[name], "artifact": artifact.path}
            for name, artifact in scores.items()
        }
        typer.echo(json.dumps(found, indent=2, sort_keys=True))
        return
    typer.echo(markdown_page(comparison))
    for name, artifact in scores.items():
        typer.echo(f"{name:<12} {artifact.path}")
    if report is not None:
        typer.echo(f"page         {report / 'index.html'}")
