"""`longred evaluate`: scores any checkpoint, outside a pipeline."""

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longred.cli.common import StoreOption, open_store
from longred.errors import ConfigError, where_paths_start

if TYPE_CHECKING:
    from pydantic import ValidationError

    from longred.cli.resolve import NamedModel
    from longred.config import EvaluationConfig
    from longred.store.artifacts import Artifact, Store


TEXT_TOKENS_PER_SAMPLE = 128
"""Tokens of held-out text that are measured for each sample of a task."""

Models = Annotated[
    list[str],
    typer.Argument(
        help="`demo`, `latest` or another run, RUN/METHOD, artifacts, folders or hub names",
        metavar="MODEL...",
    ),
]
Original = Annotated[
    str | None, typer.Option(help="the model that retention and similarity compare with")
]
Revision = Annotated[str | None, typer.Option(help="commit, for hub names")]
Suite = Annotated[
    str, typer.Option(help="short tasks: demo, short-core, paper or another suite, or a YAML file")
]
Tasks = Annotated[str, typer.Option(help="only these tasks of the suite: a,b")]
Capacities = Annotated[
    str, typer.Option(help="only these capacities (groups of tasks) of the suite: a,b")
]
RulerLengths = Annotated[str, typer.Option(help="lengths of --ruler-tasks in tokens: 4096,8192")]
RulerTasks = Annotated[
    str,
    typer.Option(
        help="long tasks: a,b of RULER's, or ruler for all 13 (the default), ruler-v2 for RULER "
        "v2's 12, which need `--set evaluation.ruler.mmlu=…`, kv_retrieval"
    ),
]
PerplexityLengths = Annotated[str, typer.Option(help="perplexity lengths in tokens: 4096,8192")]
Judge = Annotated[
    str | None,
    typer.Option(
        help="folder or hub name of the model that selects LongPPL's key tokens; needs --perplexity"
    ),
]
NumSamples = Annotated[int, typer.Option(min=1, help="maximum samples per task")]
Text = Annotated[
    Path | None,
    typer.Option(
        help="file or folder of text for loss, similarity and perplexity (default: Python's "
        "standard library)"
    ),
]
DataType = Annotated[str, typer.Option(help="bfloat16 or float32, of weights and computation")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Backend = Annotated[str, typer.Option(help="generation backend: hf or vllm")]
BatchTokens = Annotated[str, typer.Option(help="tokens at once: a number, or auto")]
NumProcesses = Annotated[int, typer.Option(min=1, help="processes, one model and device each")]
ChatTemplate = Annotated[str, typer.Option(help="ask in the chat form: auto, true or false")]
Seed = Annotated[int, typer.Option(min=0, help="of the samples")]
BeyondWindow = Annotated[
    bool, typer.Option("--beyond-window", help="allow lengths beyond a model's window")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code-execution", help="run code that the model generates")
]
SkipMissing = Annotated[
    bool, typer.Option("--skip-missing", help="report n/a for tasks whose data is unavailable")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="any other setting: evaluation.ruler.squad=dev-v2.0.json"
    ),
]
Report = Annotated[Path | None, typer.Option(help="folder for an HTML page with plots")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def evaluate(
    models: Models,
    original: Original = None,
    revision: Revision = None,
    suite: Suite = "demo",
    tasks: Tasks = "",
    capacities: Capacities = "",
    ruler: RulerLengths = "",
    ruler_tasks: RulerTasks = "",
    perplexity: PerplexityLengths = "",
    judge: Judge = None,
    num_samples: NumSamples = 100,
    text: Text = None,
    dtype: DataType = "bfloat16",
    device: DeviceOption = "auto",
    backend: Backend = "hf",
    batch_tokens: BatchTokens = "auto",
    num_processes: NumProcesses = 1,
    chat_template: ChatTemplate = "auto",
    seed: Seed = 0,
    beyond_window: BeyondWindow = False,
    allow_code_execution: AllowCode = False,
    skip_missing: SkipMissing = False,
    settings: Settings = None,
    report: Report = None,
    as_json: AsJson = False,
    store: StoreOption = None,
) -> None:
    """Score models on the same frozen samples; earlier results are reused."""
    from longred import stages
    from longred.cli.resolve import commit_of
    from longred.config import ModelConfig

    values: dict[str, Any] = {
        "ruler": _ruler(ruler, ruler_tasks, num_samples),
        "short": _short(
            suite, tasks, capacities, num_samples, skip=skip_missing, allow=allow_code_execution
        ),
        "perplexity": _perplexity(perplexity, judge),
        **{"dtype": dtype, "device": device, "backend": backend, "batch_tokens": batch_tokens},
        **{"num_processes": num_processes, "chat_template": chat_template, "seed": seed},
        "similarity_tokens": _text_tokens(num_samples),
    }
    _apply_settings(values, settings or [])
    _check_files(values["short"], report)
    # Imports torch: after what needs no model.
    from longred.evaluation.standalone import check_tokenizers, text_config

    opened = open_store(store)
    named = _name(opened, models, original)
    if text is not None and not text.expanduser().exists():
        raise ConfigError(f"--text: {text} does not exist{where_paths_start(text)}")
    found = {}
    for name, model in named.items():
        commit = commit_of(model, revision)
        found[name] = stages.find_model(ModelConfig(path=model.path, revision=commit), store=opened)
    config = _config(found, values, beyond_window=beyond_window)
    base = _base(found)
    folders = [model.folder for model in found.values()]
    check_tokenizers({name: model.folder for name, model in found.items()})
    data = stages.prepare_data(
        text_config(folders, text, seed, add_bos=config.add_bos_token), base, store=opened
    )
    samples = stages.freeze_samples(config, base, data, store=opened)
    scores = _evaluate(config, found, base, samples, data, opened)
    sources = {
        name: model.path + (f" at {commit}" if (commit := model.revision or revision) else "")
        for name, model in named.items()
    }
    _print_scores(config, scores, samples, text, report, sources, as_json)


def _check_files(short: Any, report: Path | None) -> None:
    """Refuse an unknown suite or task, and a report that cannot be written.

    Needs neither torch nor a model, so that the message comes at once.

    Raises:
        ConfigError: a setting of short tasks is invalid, a suite or task is unknown, a data file of
            the suite is missing, or the report's folder is a file or cannot be written to.
    """
    from pydantic import ValidationError

    from longred.config import EvaluationConfig
    from longred.evaluation.suites import check_data_files, suite_of
    from longred.store.artifacts import existing_folder

    if report is not None:
        found = existing_folder(report)
        if not found.is_dir():
            raise ConfigError(f"--report: {found} is a file; name a folder")
        if not os.access(found, os.W_OK):
            raise ConfigError(f"--report: {found} cannot be written to; name another folder")
    try:
        config = EvaluationConfig.model_validate({"short": short})
    except ValidationError as error:
        raise ConfigError(_problem(error)) from None
    check_data_files(suite_of(config))


def _ruler(lengths: str, tasks: str, num_samples: int) -> dict[str, Any]:
    if tasks and not lengths:
        raise ConfigError("--ruler-tasks: needs lengths, e.g. --ruler 4096,8192")
    found = {"lengths": _lengths("--ruler", lengths), "num_samples": num_samples}
    return {**found, "tasks": _list(tasks)} if tasks else found


def _perplexity(lengths: str, judge: str | None) -> dict[str, Any]:
    if judge and not lengths:
        raise ConfigError("--judge: needs lengths, e.g. --perplexity 4096,8192")
    return {"lengths": _lengths("--perplexity", lengths), "judge": judge}


def _short(
    suite: str, tasks: str, capacities: str, num_samples: int, *, skip: bool, allow: bool
) -> dict[str, Any]:
    return {
        "suite": suite,
        "tasks": _list(tasks),
        "capacities": _list(capacities),
        "num_samples": num_samples,
        "limit": num_samples,
        "on_missing": "skip" if skip else "error",
        "allow_code_execution": allow,
    }


def _apply_settings(values: dict[str, Any], settings: Sequence[str]) -> None:
    """Apply --set options to `values` in place."""
    from longred.recipes import apply_override

    for setting in settings:
        if not setting.startswith("evaluation."):
            raise ConfigError(
                f"--set: {setting} does not start with `evaluation.`; it takes keys of a recipe's "
                "evaluation section, e.g. evaluation.ruler.squad=dev-v2.0.json"
            )
        apply_override({"evaluation": values}, setting)


def _text_tokens(num_samples: int) -> int:
    """Return the tokens of held-out text: in proportion to the samples, at most as a pipeline's."""
    from longred.config import EvaluationConfig

    most = EvaluationConfig.model_fields["similarity_tokens"].default
    return min(int(most), TEXT_TOKENS_PER_SAMPLE * num_samples)


def _base(found: "Mapping[str, Artifact]") -> "Artifact":
    """Return the model that the others are compared with, and whose tokenizer samples are for."""
    return found.get("original") or next(iter(found.values()))


def _config(
    found: "Mapping[str, Artifact]", values: Mapping[str, Any], *, beyond_window: bool
) -> "EvaluationConfig":
    """Return the validated evaluation section.

    Raises:
        ConfigError: a setting or a task of RULER is unknown or invalid, or a length exceeds a
            model's window.
    """
    from pydantic import ValidationError

    from longred.evaluation import ruler
    from longred.evaluation.standalone import check_lengths, evaluation_config

    folders = {name: model.folder for name, model in found.items()}
    try:
        config = evaluation_config([*folders.values()], values)
    except ValidationError as error:
        raise ConfigError(_problem(error)) from None
    if not beyond_window:
        asked = {name: folder for name, folder in folders.items() if name != "original"}
        check_lengths(asked, config.ruler.lengths if config.ruler.tasks else [], "--ruler")
        check_lengths(asked, config.perplexity.lengths, "--perplexity")
    for task in config.ruler.tasks:
        ruler.check_task(task)
    return config


def _problem(error: "ValidationError") -> str:
    """Return the errors of pydantic as text, with the options or keys that the user gave."""
    from longred.config import EvaluationConfig
    from longred.config.messages import problems_in

    options = inspect.signature(evaluate).parameters
    lines = problems_in(error, root=EvaluationConfig, prefix="evaluation").splitlines()
    for number, line in enumerate(lines):
        key, colon, rest = line.partition(": ")
        name = key.removeprefix("evaluation.")
        if name in options:
            lines[number] = f"--{name.replace('_', '-')}{colon}{rest}"
    return "\n".join(lines)


def _name(store: "Store", models: Sequence[str], original: str | None) -> "dict[str, NamedModel]":
    """Name each model after its method or folder; tell equal names apart by run or number."""
    from longred.cli.resolve import name_model, refuse_setting

    found = {} if original is None else {"original": name_model(store, original)}
    for text in models:
        refuse_setting(text)
        model = name_model(store, text)
        name = model.label
        if name in found and model.run is not None:
            name = f"{name}-{model.run}"
        if name in found:
            name = f"{name}-{len(found) + 1}"
        found[name] = model
    return found


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _lengths(option: str, text: str) -> list[int]:
    try:
        lengths = [int(part) for part in _list(text)]
    except ValueError:
        raise ConfigError(f"{option}: {text} is not a list of lengths like 4096,8192") from None
    if any(length < 1 for length in lengths):
        raise ConfigError(f"{option}: {text}: lengths must be 1 or more")
    return lengths


def _evaluate(
    config: "EvaluationConfig",
    models: "Mapping[str, Artifact]",
    base: "Artifact",
    samples: "Artifact",
    data: "Artifact",
    store: "Store",
) -> "dict[str, Artifact]":
    from longred import stages
    from longred.cli.score_board import ScoreBoard

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


def _print_scores(
    config: "EvaluationConfig",
    scores: "Mapping[str, Artifact]",
    samples: "Artifact",
    text: Path | None,
    report: Path | None,
    sources: "Mapping[str, str]",
    as_json: bool,
) -> None:
    from longred.cli.results import print_markdown
    from longred.report.scores import collect
    from longred.report.tables import markdown_page

    folders = {name: artifact.folder for name, artifact in scores.items()}
    comparison = collect(folders, original_window=config.original_window, dropped=[])
    # Another text than that of a run, so the losses of both cannot be compared.
    held_out_from = "Python's standard library" if text is None else str(text)
    comparison = replace(comparison, text=held_out_from)
    if report is not None:
        from longred.report.write import write_evaluation

        write_evaluation(report, config, folders, samples.folder, comparison, sources)
    if as_json:
        found = {
            name: {"scores": comparison.models[name], "artifact": artifact.path}
            for name, artifact in scores.items()
        }
        typer.echo(json.dumps(found, indent=2, sort_keys=True))
        return
    print_markdown(markdown_page(comparison))
    typer.echo(_what_is_compared(config, list(scores)))
    for name, artifact in scores.items():
        typer.echo(f"{name:<12} {artifact.path}")
    if report is not None:
        typer.echo(f"page         {report / 'index.html'}")


def _what_is_compared(config: "EvaluationConfig", models: Sequence[str]) -> str:
    """Return what the sizes of prompts follow from, and what similarity is to."""
    from longred.evaluation.suites import suite_of

    base = "original" if "original" in models else models[0]
    sizes = f"rows of text have {config.text_window:,} tokens"
    # Tasks of lm-eval and of published benchmarks use the whole window.
    if any(task.source == "local" for task in suite_of(config)):
        sizes = f"prompts of local short tasks have up to {config.local_window:,} tokens; {sizes}"
    if len(models) == 1:
        return f"{sizes} (evaluation.short_window; the model's window: {config.original_window:,})"
    return (
        f"{sizes} (evaluation.short_window; the smallest window of these models: "
        f"{config.original_window:,}); similarity is to {base}"
    )
