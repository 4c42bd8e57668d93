"""The first decoder layers of a model that hold every kind of layer it has, with real weights."""

import contextlib
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from longred.attention.function import register
from longred.errors import ConfigError, MismatchError, PreflightError
from longred.models.architectures import layer_types, refuse_other_parts, rope_layers
from longred.models.load import no_progress_bars
from longred.models.vector_math import warm_up_vector_math

WINDOW = 48
"""Sliding windows are narrowed to this, so that a few tokens reach beyond them."""

_LAYER = re.compile(r"\blayers\.(\d+)\.")


def num_first_layers(config: PreTrainedConfig) -> int:
    """Return how many first decoder layers hold every kind of layer, at least 2.

    Layers are of one kind if they have the same weights, window and use of RoPE.

    Raises:
        ConfigError: the model is not built of the parts that training works on.
    """
    model = empty_model(config, attention="eager")
    rotating, kinds, seen = rope_layers(config), layer_types(config), set()
    needed = min(2, len(kinds))
    for number, layer in enumerate(model.base_model.layers):
        shapes = tuple((name, tuple(weight.shape)) for name, weight in layer.named_parameters())
        kind = (kinds[number], number in rotating, shapes)
        if kind not in seen:
            seen.add(kind)
            needed = max(needed, number + 1)
    return needed


def shortened(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """Return the configuration of the first layers alone, with a window that few tokens exceed."""
    short = copy.deepcopy(config)
    before = config.num_hidden_layers
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == before:
            setattr(short, name, list(value[:num_layers]))
    short.num_hidden_layers = num_layers
    if getattr(short, "sliding_window", None):
        short.sliding_window = min(short.sliding_window, WINDOW)
    return short


def bytes_needed(config: PreTrainedConfig, device: torch.device) -> float:
    """Return the memory that a comparison of gradients of the first layers needs, bytes.

    float32 weights and their gradients; on the host the model's own gradients, too. The rest is
    small beside them: measured 2.9 times the weights on a CPU, with 0.4 B weights.

    Args:
        config: see `shortened`.
        device: where the layers run.
    """
    model = empty_model(config, attention="eager")
    times = 2 if device.type == "cuda" else 3
    return float(4 * times * sum(weight.numel() for weight in model.parameters()))


def load_first_layers(weights: Path, config: PreTrainedConfig) -> Any:
    """Load the layers of a shortened configuration in float32, with eager attention.

    Args:
        weights: a folder of safetensors files; those of other layers are not read.
        config: see `shortened`.

    Raises:
        MismatchError: the weights do not fit the configuration.
        PreflightError: a file cannot be read.
    """
    register()
    warm_up_vector_math()
    loader: Any = AutoModelForCausalLM
    try:
        with no_progress_bars(), _without_warnings():
            model, report = loader.from_pretrained(
                weights,
                config=copy.deepcopy(config),
                dtype=torch.float32,
                attn_implementation="eager",
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except (OSError, safetensors.SafetensorError) as error:
        raise PreflightError(
            f"{weights}: the weights cannot be read ({error}); fetch the model again"
        ) from error
    num_layers = config.num_hidden_layers
    problems = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    problems += [
        f"{name} has shape {tuple(saved)} instead of {tuple(wanted)}"
        for name, saved, wanted in sorted(report["mismatched_keys"])
    ]
    problems += [
        f"{name} is unknown"
        for name in sorted(report["unexpected_keys"])
        if not any(int(number) >= num_layers for number in _LAYER.findall(name))
    ]
    if problems:
        raise MismatchError(
            f"{weights}: the weights do not fit the configuration, or the first {num_layers} "
            f"layers cannot be loaded alone: {len(problems)} differences, first {problems[0]}"
        )
    return model.eval()


def empty_model(config: PreTrainedConfig, *, attention: str) -> Any:
    """Build a model with its weights on the meta device; buffers are real.

    Raises:
        ConfigError: it is no causal language model, or not built of the parts that training works
            on.
    """
    register()
    loader: Any = AutoModelForCausalLM
    try:
        with init_empty_weights(include_buffers=False):
            model = loader.from_config(
                copy.deepcopy(config),
                dtype=torch.float32,
                attn_implementation=attention,
                trust_remote_code=False,
            )
    except ValueError as error:
        raise ConfigError(f"model.path: is no causal language model ({error})") from error
    refuse_other_parts(model, type(model).__name__)
    return model


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep transformers from listing the weights of the layers that are not loaded."""
    logging: Any = transformers_logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
