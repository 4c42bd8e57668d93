"""`longred check`: the handshake with a model, before anything is prepared for it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longred.cli.common import StoreOption, open_store
from longred.errors import ConfigError, PreflightError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from longred.training.handshake import Finding

FACTOR = 4
"""Default of the target window, in original windows."""

MEMORY_SHARE = 0.7
"""A whole model is loaded, in bfloat16, if it needs at most this share of the memory."""


def check(
    model: Annotated[str, typer.Argument(help="demo, a folder, a .gguf file, or NAME@COMMIT")],
    target_window: Annotated[
        int, typer.Option(help="window to extend to, tokens; 0: four times the model's own")
    ] = 0,
    method: Annotated[
        str, typer.Option(help="RoPE method; auto: the first that suits the model's RoPE")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    store: StoreOption = None,
) -> None:
    """Check that MODEL can be trained exactly: compare training with the model's own code.

    Attention, loss, gradients, RoPE and export are compared on the first layers in float32, and a
    short passage is read at rising positions by the whole model. Ends with exit code 3 if a
    comparison fails.
    """
    import torch

    from longred.cli.resolve import commit_of, name_model
    from longred.models.first_layers import num_first_layers
    from longred.models.load import choose_device, load_config, resolve_model
    from longred.training.handshake import MEMORY, shake_hands

    named = name_model(open_store(store), model)
    folder = resolve_model(named.path, commit_of(named, option=""))
    config, chosen = load_config(folder), choose_device(device, "--device")
    # Refuses models of other parts, which may not even have a window.
    num_first = num_first_layers(config)
    extended, how = _extended(config, method, target_window)
    num_layers = config.num_hidden_layers
    head = {
        "model": model,
        "architecture": (config.architectures or [type(config).__name__])[0],
        "num_layers": num_layers,
        "num_compared": num_first,
        "extension": how,
        "device": chosen.type,
    }
    if not as_json:
        which = f"the first {num_first} of" if num_first < num_layers else "all"
        typer.echo(
            f"{head['architecture']}: {which} {num_layers} layers in float32 on {chosen.type}, "
            f"extended by {how}\n"
        )
    findings = []
    compared = shake_hands(folder, extended, device=chosen, dtype=torch.bfloat16)
    for finding in _findings(compared, folder, chosen):
        findings.append(finding)
        if not as_json:
            verdict = {True: "ok", False: "WRONG", None: "-"}[finding.passed]
            typer.echo(f"{verdict:<5}  {finding.part:<34} {finding.text}")
    if as_json:
        typer.echo(json.dumps({**head, "checks": [one._asdict() for one in findings]}, indent=2))
    for finding in findings:
        if finding.part == MEMORY:
            raise PreflightError(
                f"{model}: the first {num_first} layers do not fit this machine: {finding.text}; "
                "run the check on a machine with more memory"
            )
    wrong = [finding for finding in findings if finding.passed is False]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise PreflightError(
            f"{model}: cannot be trained exactly: {wrong[0].part}: {wrong[0].text}{more}"
        )
    if not as_json:
        typer.echo("\nthis model can be trained exactly")


def _extended(
    config: "PreTrainedConfig", method: str, target_window: int
) -> "tuple[PreTrainedConfig, str]":
    """Return the configuration extended by a method, and the extension in words."""
    from longred.models.architectures import main_rope
    from longred.models.extension import extend_config, usable_methods

    rope = main_rope(config)
    kind = rope.get("rope_type", "default")
    # `extend_config` refuses a model without a window.
    target = target_window or FACTOR * int(getattr(config, "max_position_embeddings", None) or 1)
    if method == "auto":
        method = next(iter(usable_methods(config, target)), "abf")
    # A model with its own factors keeps them: which ones suit a longer window is not asked here.
    settings = {"long_factor": rope["long_factor"]} if kind == method == "longrope" else {}
    try:
        extended = extend_config(config, method=method, target_window=target, **settings)
    except ConfigError as error:
        message = str(error)
        for key in ("target_window", "extension.method"):
            message = message.replace(f"{key}:", f"--{key.rpartition('.')[2].replace('_', '-')}:")
        raise ConfigError(message) from error
    return extended, f"{method} to {target:,} tokens"


def _findings(
    compared: "Iterator[Finding]", folder: Path, device: "torch.device"
) -> "Iterator[Finding]":
    from longred.training.handshake import guarded

    yield from compared
    yield guarded("passage at rising positions", lambda: _passage(folder, device))


def _passage(folder: Path, device: "torch.device") -> tuple[str, bool | None]:
    """Read a short passage at rising positions with the whole original model, if it fits."""
    import torch

    from longred.cost.machine import memory_of
    from longred.cost.shape import shape_of
    from longred.models.load import load_config, load_model, load_tokenizer
    from longred.profiling.passage import (
        PASSAGE,
        keeps_its_perplexity,
        passage_perplexities,
        passage_text,
    )
    from longred.progress import size

    config = load_config(folder)
    needed, there = 2.0 * shape_of(config).num_parameters, memory_of(device)
    if needed > MEMORY_SHARE * there:
        return f"not read: the whole model needs {size(needed)} of {size(there)}", None
    loaded: Any = load_model(folder, dtype=torch.bfloat16, device=device, backend="sdpa")
    tokens = load_tokenizer(folder)(PASSAGE)["input_ids"]
    found = passage_perplexities(loaded, tokens, int(config.max_position_embeddings))
    return passage_text(found), keeps_its_perplexity(found)
