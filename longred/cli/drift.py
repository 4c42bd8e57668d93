"""`longred drift`: how far one model's attention and hidden states are from another's."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longred.cli.common import StoreOption, open_store
from longred.errors import ConfigError, MismatchError
from longred.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from longred.profiling.drift import Drift
    from longred.profiling.sweep import Setting
    from longred.store.artifacts import Store


def drift(
    model_a: Annotated[str, typer.Argument(help="the original: demo, a folder, or NAME@COMMIT")],
    model_b: Annotated[
        str | None, typer.Argument(help="the model to compare with it, such as `latest`")
    ] = None,
    data: Annotated[
        str,
        typer.Option(help="text file, folder, jsonl, parquet; prepared data: a run or artifact"),
    ] = "library",
    length: Annotated[
        int, typer.Option(help="tokens per row; 0: half the window, at most 1,024")
    ] = 0,
    tokens: Annotated[int, typer.Option(help="tokens to measure")] = 16384,
    batch_rows: Annotated[int, typer.Option(help="rows per batch")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    theta: Annotated[
        str, typer.Option(help="sweep: rope_theta values for abf, comma-separated")
    ] = "",
    factor: Annotated[str, typer.Option(help="sweep: window factors, comma-separated")] = "",
    methods: Annotated[str, typer.Option(help="sweep: RoPE methods to use with --factor")] = "pi",
    out: Annotated[Path | None, typer.Option(help="folder for JSON, parquet and PNGs")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    store: StoreOption = None,
) -> None:
    """Measure how far MODEL_B's attention and hidden states are from MODEL_A's, layer by layer.

    Without MODEL_B: measure how far MODEL_A drifts from itself when RoPE is rescaled by --theta or
    --factor.
    """
    from longred.cli.drift_text import read_text_rows
    from longred.data.tokens import TextTokenizer
    from longred.profiling.drift import Drift, profile_drift
    from longred.profiling.passage import PASSAGE
    from longred.profiling.sweep import original_theta, sweep_drift

    settings = _settings(theta, factor, methods)
    if (model_b is None) != bool(settings):
        raise ConfigError(
            "drift: give MODEL_B, or --theta or --factor to try on MODEL_A alone, not both"
        )
    if out is not None and out.is_file():
        raise ConfigError(f"--out: {out} is a file; name a folder")
    options = {"--tokens": tokens, "--batch-rows": batch_rows, "--length": length or 1}
    for option, value in options.items():
        if value < 1:
            raise ConfigError(f"{option}: must be 1 or more, got {value}")
    opened = open_store(store)
    folder_a = _resolve(opened, model_a)
    folder_b = None if model_b is None else _resolve(opened, model_b)
    if folder_b is not None:
        _check_tokenizers(folder_a, folder_b)
    teacher = _load(folder_a, device, dtype)
    half_window = max(1, min(1024, int(teacher.config.max_position_embeddings) // 2))
    tokenizer = TextTokenizer(folder_a, add_bos=False)
    text = _text(opened, data)
    rows_NT = read_text_rows(text, tokenizer, length=length or half_window, num_tokens=tokens)
    values: dict[str, Any] = {
        "model_a": model_a,
        "data": data,
        "length": int(rows_NT.shape[1]),
        "num_tokens": int(rows_NT.numel()),
    }
    found: Drift | None = None
    with _progress_bar() as progress:
        if folder_b is None:
            points = sweep_drift(
                teacher, settings, rows_NT, batch_rows=batch_rows, on_progress=progress
            )
            values["rope_theta_before"] = original_theta(teacher)
            values["points"] = [point._asdict() for point in points]
        else:
            student = _load(folder_b, device, dtype, original=folder_a)
            found = profile_drift(
                teacher, student, rows_NT, batch_rows=batch_rows, on_progress=progress
            )
            values |= {"model_b": model_b, **found.to_json()}
            ids = tokenizer.encode([PASSAGE])[0].tolist()
            values["passage"] = [_read_passage(model, ids) for model in (teacher, student)]
    if out is not None:
        _write(out, values, found)
    typer.echo(json.dumps(values, indent=2) if as_json else "\n".join(_table(values)))


def _read_passage(model: "PreTrainedModel", tokens: list[int]) -> dict[str, Any]:
    """Read a short passage at rising positions, up to the end of the model's window."""
    from longred.profiling.passage import (
        keeps_its_perplexity,
        passage_perplexities,
        passage_text,
    )

    found = passage_perplexities(model, tokens, int(model.config.max_position_embeddings))
    return {
        "perplexities": [one._asdict() for one in found],
        "text": passage_text(found),
        "is_kept": keeps_its_perplexity(found),
    }


def _settings(theta: str, factor: str, methods: str) -> "list[Setting]":
    from longred.profiling.sweep import Setting

    found = [Setting("abf", value) for value in _numbers("--theta", theta)]
    for method in methods.split(","):
        found += [Setting(method.strip(), value) for value in _numbers("--factor", factor)]
    return found


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is not a list of numbers like 2e4,4e4") from None


def _resolve(store: "Store", model: str) -> Path:
    from longred.cli.resolve import commit_of, name_model
    from longred.models.load import resolve_model

    named = name_model(store, model)
    return resolve_model(named.path, commit_of(named, option=""))


def _text(store: "Store", data: str) -> str:
    """Return the folder of prepared data that a run or artifact names; any other text unchanged."""
    from longred.cli.resolve import find_artifact, find_data
    from longred.runs.record import is_run_name

    if Path(data).expanduser().exists():
        return data
    is_named = is_run_name(data) or find_artifact(store, data, ("data",)) is not None
    return str(find_data(store, data)) if is_named else data


def _load(
    folder: Path, device: str, dtype: str, *, original: Path | None = None
) -> "PreTrainedModel":
    import torch

    from longred.models.load import choose_device, load_model

    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"--dtype: {dtype!r} is not one of float32, bfloat16")
    return load_model(
        folder,
        dtype=getattr(torch, dtype),
        device=choose_device(device, "--device"),
        original=original,
    )


def _check_tokenizers(folder_a: Path, folder_b: Path) -> None:
    from longred.store.artifacts import read_json

    models = [read_json(folder / "tokenizer.json").get("model") for folder in (folder_a, folder_b)]
    if models[0] != models[1]:
        raise MismatchError(
            f"{folder_b / 'tokenizer.json'}: is another tokenizer than {folder_a}; drift "
            "compares models with the same tokens"
        )


@contextlib.contextmanager
def _progress_bar() -> Iterator[Progress]:
    """Show a progress bar if standard error is a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("drift", total=None)
        yield lambda done, total, text: bar.update(
            task, completed=done, total=total, description=f"drift, {text}"
        )


def _write(out: Path, values: dict[str, Any], found: "Drift | None") -> None:
    """Write the JSON file, the plots, and the cells of a drift."""
    from longred.profiling.drift import write_parquet
    from longred.report.figures import draw_all
    from longred.report.plots import FigureData
    from longred.store.artifacts import storage_errors, write_json

    if "points" in values:
        plots = draw_all(("drift-sweep",), FigureData(sweep=values))
    else:
        drifts = {Path(values["model_b"]).name: values}
        names = ("drift-layers", "drift-heads", "drift-positions")
        plots = draw_all(names, FigureData(drifts=drifts, profiled=drifts))
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for plot in plots:
            (out / f"{plot.name}.png").write_bytes(plot.png)
        if found is not None:
            write_parquet(found, out / "drift.parquet")
    write_json(out / ("sweep.json" if "points" in values else "drift.json"), values)


def _table(values: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the text output."""
    text = f"{values['num_tokens']:,} tokens of {values['data']}, rows of {values['length']:,}"
    if "points" in values:
        yield f"{values['model_a']} with RoPE rescaled: {text}\n"
        yield f"{'RoPE':<18}  {'attention KL':>12}  {'similarity':>10}  {'last layer':>10}"
        for point in values["points"]:
            yield (
                f"{point['method']:<6} {point['value']:<11g}  {point['attention_kl']:>12.5f}  "
                f"{point['hidden_similarity']:>10.5f}  {point['last_similarity']:>10.5f}"
            )
        return
    yield f"{values['model_b']} from {values['model_a']}: {text}\n"
    row = "{:>5}  {:>12}  {:>8}  {:>6}  {:>10}  {:>8}"
    yield row.format("layer", "attention KL", "± std", "share", "similarity", "± std")
    kls, similarities = values["attention_kl"], values["hidden_similarity"]
    stds = zip(values["attention_kl_std"], values["hidden_similarity_std"], strict=True)
    for layer, (kl_std, similarity_std) in enumerate(stds):
        share = f"{100 * kls[layer] / sum(kls):.0f} %" if sum(kls) > 0 else "-"
        cells = (f"{kls[layer]:.5f}", f"{kl_std:.4f}", share, f"{similarities[layer]:.5f}")
        yield row.format(layer, *cells, f"{similarity_std:.4f}")
    means = [f"{sum(column) / len(column):.5f}" for column in (kls, similarities)]
    yield row.format("mean", means[0], "", "", means[1], "").rstrip()
    yield ""
    for name, passage in zip(("model_a", "model_b"), values["passage"], strict=True):
        yield f"{values[name]}: a short passage has {passage['text']}"
        if not passage["is_kept"]:
            yield "  its RoPE is not what it was trained with: positions must not change the loss"
    yield (
        "\nattention KL in nats per query; similarity of layer outputs, of the last layer after "
        "the final norm"
    )
