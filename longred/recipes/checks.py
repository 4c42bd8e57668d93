"""What cannot work across the sections of a recipe, each problem naming its dotted key."""

import re
from typing import TYPE_CHECKING

from longred.methods import BUCKETS

if TYPE_CHECKING:
    from longred.config import RunConfig

_COMMIT = re.compile(r"[0-9a-f]{40}")
MIN_PRACTICE_TOKENS = 64


def problems(config: "RunConfig") -> list[str]:
    """Return what cannot work across sections, each naming its dotted key."""
    data, training = config.data, config.training
    found: list[str] = []
    if config.target_window <= config.original_window:
        found.append(
            f"target_window: {config.target_window} must be larger than "
            f"original_window ({config.original_window})"
        )
    if data.short_length * 2 > config.original_window:
        found.append(
            f"data.short_length: {data.short_length} is more than half of "
            f"original_window ({config.original_window}); such a teacher teaches noise"
        )
    if set(data.ratio) != set(BUCKETS):
        found.append("data.ratio: needs exactly the buckets long, short and original")
    for bucket in BUCKETS:
        if not any(source.buckets.get(bucket, 0.0) > 0 for source in data.sources):  # type: ignore[call-overload]
            found.append(f"data.sources: no source has a share of the {bucket} bucket")
    names = [source.name for source in data.sources]
    if len(set(names)) != len(names):
        found.append("data.sources: names must differ")
    for number, source in enumerate(data.sources):
        if source.kind in ("files", "hub") and not source.path:
            found.append(f"data.sources.{number}.path: a source of kind {source.kind} needs a path")
        if source.kind == "hub" and not _COMMIT.fullmatch(source.revision or ""):
            found.append(
                f"data.sources.{number}.revision: a hub data set needs the full commit hash "
                "(40 hexadecimal digits), since a branch can move"
            )
        if source.kind == "practice" and (source.length or 0) < MIN_PRACTICE_TOKENS:
            found.append(
                f"data.sources.{number}.length: a source of kind practice needs a length of "
                f"{MIN_PRACTICE_TOKENS} tokens or more"
            )
    if config.extension.method == "abf" and config.extension.rope_theta is None:
        found.append("extension.rope_theta: method abf needs the raised theta")
    selection = config.selection
    if (selection.strategy == "manual") != (selection.layers is not None):
        found.append("selection.layers: give the layers with strategy manual, and only with it")
    if training.method in training.baselines:
        found.append(f"training.baselines: {training.method} is already training.method")
    if not found:
        found.extend(_step_problems(config))
    too_long = [
        length for length in config.evaluation.ruler.lengths if length > config.target_window
    ]
    if too_long:
        found.append(
            f"evaluation.ruler.lengths: {too_long} exceed target_window ({config.target_window})"
        )
    return found


def _step_problems(config: "RunConfig") -> list[str]:
    training, found = config.training, []
    lengths = training.block_lengths()
    for method in training.methods():
        for bucket, tokens in training.bucket_tokens(method).items():
            if tokens < lengths[bucket] or tokens % lengths[bucket]:
                unit = sum(config.data.ratio.values()) * max(lengths.values())
                found.append(
                    f"training.step_tokens: {training.step_tokens} gives the {bucket} bucket "
                    f"{float(tokens):g} tokens a step for {method}, not a whole number of blocks "
                    f"of {lengths[bucket]}; try a multiple of {unit}"
                )
    return found
