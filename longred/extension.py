"""RoPE rescaled for the target window: the student's configuration, its weights by reference."""

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longred.artifacts import storage_errors, write_json
from longred.errors import ConfigError
from longred.model_folder import REFERENCE_NAME, copy_companions, write_config
from longred.models import load_config


def extend_config(
    config: PreTrainedConfig, *, method: str, target_window: int, **settings: Any
) -> PreTrainedConfig:
    """Return a copy of a configuration with RoPE rescaled for `target_window`.

    Args:
        config: the original model's; it is left as it is.
        method: a key of `METHODS`: `abf` raises rope_theta (arXiv 2309.16039), `pi` divides
            positions by the factor target / original (arXiv 2306.15595).
        target_window: tokens.
        settings: `rope_theta` for abf; `original_window` where it is not the configuration's
            max_position_embeddings. None counts as not given.

    Raises:
        ConfigError: method or setting is unknown, a value cannot work, or RoPE is rescaled already.
    """
    if method not in METHODS:
        raise ConfigError(f"extension.method: {method!r} is not one of {', '.join(METHODS)}")
    given = {name: value for name, value in settings.items() if value is not None}
    original_window = given.pop("original_window", config.max_position_embeddings)
    _check_windows(config, original_window, target_window)
    rope = _plain_rope(config)
    extended = copy.deepcopy(config)
    extended.rope_parameters = METHODS[method](rope, target_window / original_window, given)
    extended.max_position_embeddings = target_window
    return extended


def inverse_frequencies(config: PreTrainedConfig) -> torch.Tensor:
    """Return RoPE's angle per position for each pair of dimensions, fp32 [d / 2]."""
    rope = config.rope_parameters
    if rope["rope_type"] != "default":
        return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))[0]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies: torch.Tensor = 1.0 / (rope["rope_theta"] ** exponents)
    return frequencies


def write_extension(
    original: Path,
    folder: Path,
    *,
    digest: str,
    method: str,
    original_window: int,
    target_window: int,
    **settings: Any,
) -> None:
    """Write the extended model: configuration and tokenizer here, weights where the original is.

    Args:
        original: the original model's folder.
        folder: an existing or new folder.
        digest: of the original model.
        method: a key of `METHODS`.
        original_window: tokens.
        target_window: tokens.
        settings: of the method.

    Raises:
        ConfigError: as `extend_config`.
        PreflightError: the original model's configuration cannot be read.
        StorageError: the disk is full.
    """
    before = load_config(original)
    after = extend_config(
        before,
        method=method,
        target_window=target_window,
        original_window=original_window,
        **settings,
    )
    ratio = inverse_frequencies(after) / inverse_frequencies(before)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_config(after, folder)
        copy_companions(original, folder, max_length=target_window)
        reference = {"folder": str(original.resolve()), "digest": digest}
        write_json(folder / REFERENCE_NAME, reference)
        facts = {
            "method": method,
            "original_window": original_window,
            "target_window": target_window,
            "rope_theta_before": before.rope_parameters["rope_theta"],
            "rope_theta_after": after.rope_parameters["rope_theta"],
            "inv_freq_ratio_per_dim": ratio.tolist(),
        }
        write_json(folder / "extension.json", facts)


def _raise_theta(
    rope: Mapping[str, Any], factor: float, settings: Mapping[str, Any]
) -> dict[str, Any]:
    _refuse_unknown(settings, {"rope_theta"}, "abf")
    theta, before = settings.get("rope_theta"), rope["rope_theta"]
    if theta is None:
        raise ConfigError("extension.rope_theta: method abf needs the raised theta")
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not math.isfinite(theta):
        raise ConfigError(f"extension.rope_theta: must be a finite number, got {theta!r}")
    if theta <= before:
        raise ConfigError(
            f"extension.rope_theta: {theta:g} does not raise the model's own rope_theta of "
            f"{before:g}; give a larger one"
        )
    return {"rope_type": "default", "rope_theta": float(theta)}


def _interpolate(
    rope: Mapping[str, Any], factor: float, settings: Mapping[str, Any]
) -> dict[str, Any]:
    _refuse_unknown(settings, set(), "pi")
    return {"rope_type": "linear", "rope_theta": rope["rope_theta"], "factor": float(factor)}


Method = Callable[[Mapping[str, Any], float, Mapping[str, Any]], dict[str, Any]]

METHODS: dict[str, Method] = {"abf": _raise_theta, "pi": _interpolate}


def _refuse_unknown(settings: Mapping[str, Any], known: set[str], method: str) -> None:
    for name in settings.keys() - known:
        raise ConfigError(
            f"extension.{name}: method {method} does not use it; remove it or set it to null"
        )


def _check_windows(config: PreTrainedConfig, original_window: Any, target_window: Any) -> None:
    for name, window in (("original_window", original_window), ("target_window", target_window)):
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ConfigError(f"{name}: must be a whole number of tokens, got {window!r}")
    limit = config.max_position_embeddings
    if original_window > limit:
        raise ConfigError(
            f"original_window: {original_window} exceeds the model's own window of {limit} "
            "(max_position_embeddings)"
        )
    if target_window <= limit:
        raise ConfigError(
            f"target_window: {target_window} must be larger than the model's own window of {limit} "
            "(max_position_embeddings)"
        )


def _plain_rope(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the model's RoPE settings, which must not be rescaled yet."""
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if not isinstance(rope.get("rope_theta"), int | float):
        raise ConfigError("extension: the model's configuration has no rope_theta for all layers")
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(
            f"extension: the model's RoPE is already rescaled (rope_type {rope['rope_type']}); "
            "start from a model whose rope_type is default"
        )
    return rope
