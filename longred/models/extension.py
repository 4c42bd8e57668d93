"""RoPE rescaled for the target window: the student's configuration, its weights by reference."""

import copy
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longred.errors import ConfigError
from longred.method.rope import ROPE_METHODS, Window, find_method, settings_problem
from longred.models.architectures import (
    FULL,
    SLIDING,
    extended_layers,
    layer_types,
    main_rope,
    rope_is_nested,
    rotary_dim,
    set_main_rope,
)
from longred.models.folder import REFERENCE_NAME, copy_companions, write_config
from longred.models.load import load_config
from longred.store.artifacts import storage_errors, write_json

log = logging.getLogger(__name__)


def extend_config(
    config: PreTrainedConfig, *, method: str, target_window: int, **settings: Any
) -> PreTrainedConfig:
    """Return a copy of a configuration with RoPE rescaled for `target_window`.

    Only layers that attend to the whole window are rescaled where the architecture gives others a
    RoPE of their own (Gemma-3); elsewhere all layers share one.

    Args:
        config: the original model's; it is left as it is.
        method: a key of `longred.method.rope.ROPE_METHODS`.
        target_window: tokens.
        settings: what the method reads; `original_window` where it is not the configuration's
            max_position_embeddings. None counts as not given.

    Raises:
        ConfigError: method or setting is unknown, a value cannot work, or the model's RoPE is
            rescaled already in a way that the method is not defined on.
    """
    found = find_method(method)
    given = {name: value for name, value in settings.items() if value is not None}
    original_window = given.pop("original_window", config.max_position_embeddings)
    _check_windows(config, original_window, target_window)
    problem = settings_problem(method, given)
    if problem:
        raise ConfigError(problem)
    rope = main_rope(config)
    _check_rope(rope, method)
    is_plain = rope.get("rope_type", "default") == "default"
    before = original_window if is_plain else config.max_position_embeddings
    window = Window(original_window, target_window, target_window / before, rotary_dim(config))
    rescaled = found.rescale(rope, window, given)
    if "partial_rotary_factor" in rope:
        rescaled["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if config.model_type == "phi3" and rescaled["rope_type"] not in ("default", "longrope"):
        raise ConfigError(
            f"extension.method: {method} makes a RoPE that transformers' Phi-3 does not read; use "
            "abf, ntk or longrope"
        )
    extended = copy.deepcopy(config)
    if hasattr(extended, "original_max_position_embeddings"):
        # Phi-3 keeps it here, and transformers lets this one win.
        original = rescaled.get("original_max_position_embeddings", original_window)
        extended.original_max_position_embeddings = original
    set_main_rope(extended, rescaled)
    extended.max_position_embeddings = target_window
    return extended


class Frequencies(NamedTuple):
    """How RoPE turns queries and keys.

    Attributes:
        inv_freq: angle per position for each pair of dimensions, fp32 [d / 2].
        attention_factor: what queries and keys are multiplied by.
    """

    inv_freq: torch.Tensor
    attention_factor: float


def frequencies(config: PreTrainedConfig, kind: str = FULL) -> Frequencies:
    """Return how RoPE turns at the full window, as transformers computes it.

    Args:
        config: a model's configuration.
        kind: of layer, where each kind has a RoPE of its own.
    """
    nested = rope_is_nested(config)
    rope = config.rope_parameters[kind] if nested else config.rope_parameters
    if rope["rope_type"] != "default":
        compute = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
        inv_freq, factor = compute(
            copy.deepcopy(config),
            torch.device("cpu"),
            seq_len=config.max_position_embeddings,
            layer_type=kind if nested else None,
        )
        return Frequencies(inv_freq, float(factor))
    dim = rotary_dim(config)
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return Frequencies(1.0 / (rope["rope_theta"] ** exponents), 1.0)


def write_extension(
    original: Path,
    folder: Path,
    *,
    digest: str,
    method: str,
    original_window: int,
    target_window: int,
    start: Path | None = None,
    **settings: Any,
) -> None:
    """Write the extended model: configuration and tokenizer here, weights where they are.

    Args:
        original: the original model's folder; its RoPE is the one that is rescaled.
        folder: an existing or new folder.
        digest: of the model whose weights are taken.
        start: a student of a smaller window whose weights are taken; the original's if None.
        method: a key of `longred.method.rope.ROPE_METHODS`.
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
    notes = _notes(after)
    for note in notes:
        log.warning("extension: %s", note)
    turns = {"before": frequencies(before), "after": frequencies(after)}
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_config(after, folder)
        copy_companions(original, folder, max_length=target_window)
        # A student lies beside this folder and moves with it, the original may lie anywhere.
        place = original.resolve() if start is None else os.path.relpath(start, folder)
        reference = {"folder": str(place), "digest": digest}
        write_json(folder / REFERENCE_NAME, reference)
        facts = {
            "method": method,
            "original_window": original_window,
            "target_window": target_window,
            "rope_theta_before": main_rope(before)["rope_theta"],
            "rope_theta_after": main_rope(after)["rope_theta"],
            "rope_parameters": main_rope(after),
            "attention_factor_before": turns["before"].attention_factor,
            "attention_factor_after": turns["after"].attention_factor,
            "inv_freq_ratio_per_dim": (turns["after"].inv_freq / turns["before"].inv_freq).tolist(),
            "extended_layers": extended_layers(after),
            "notes": notes,
        }
        write_json(folder / "extension.json", facts)


def _notes(config: PreTrainedConfig) -> list[str]:
    """Return what a user should know about the extended model, in words."""
    notes = []
    kinds, window = layer_types(config), getattr(config, "sliding_window", None)
    if SLIDING in kinds and not rope_is_nested(config):
        which = "every layer" if FULL not in kinds else "the sliding layers"
        notes.append(
            f"{which} of this architecture see the latest {window} tokens only, and share the "
            "rescaled RoPE"
        )
    if main_rope(config).get("rope_type") == "longrope":
        notes.append(
            "the student turns by the long factors at every length, so that short texts and skipped"
            " positions train one model"
        )
    return notes


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
    # Qwen2.5 was trained at 32K and names 128K: a recipe that says so is believed.
    is_plain = main_rope(config).get("rope_type", "default") == "default"
    if target_window <= (original_window if is_plain else limit) or target_window < limit:
        raise ConfigError(
            f"target_window: {target_window} must be larger than original_window, "
            f"{original_window}, and the model's own window of {limit} (max_position_embeddings)"
        )


def _check_rope(rope: Mapping[str, Any], method: str) -> None:
    """Refuse a RoPE that is missing, or rescaled in a way that the method is not defined on."""
    if not isinstance(rope.get("rope_theta"), int | float):
        raise ConfigError("extension: the model's configuration has no rope_theta for all layers")
    kind = rope.get("rope_type", "default")
    if kind not in ROPE_METHODS[method].extends:
        able = [name for name, other in ROPE_METHODS.items() if kind in other.extends]
        advice = f"use {' or '.join(able)}, or " if able else ""
        raise ConfigError(
            f"extension.method: the model's RoPE is already rescaled (rope_type {kind}), and "
            f"{method} is not defined on that; {advice}start from the model before its extension"
        )
