"""The student's configuration: RoPE rescaled for the target window, weights by reference."""

import copy
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longred.attention.heads import head_dim
from longred.errors import ConfigError
from longred.method.rope import ROPE_METHODS, Window, is_dropped, settings_problem, switches
from longred.models.architectures import (
    FULL,
    SLIDING,
    extended_layers,
    layer_types,
    main_rope,
    rope_is_nested,
    rope_layers,
    rotary_dim,
    set_main_rope,
)
from longred.models.folder import REFERENCE_NAME, copy_companions, write_config
from longred.models.load import load_config
from longred.store.artifacts import storage_errors, write_json

log = logging.getLogger(__name__)

ORIGINAL_LENGTH = "original_max_position_embeddings"


def extend_config(
    config: PreTrainedConfig, *, method: str, target_window: int, **settings: Any
) -> PreTrainedConfig:
    """Return a copy of a configuration with RoPE rescaled for `target_window`.

    In Gemma-3, whose sliding layers have a RoPE of their own, only the full-attention layers are
    rescaled; in other architectures all layers share one RoPE.

    Args:
        config: the original model's; not modified.
        method: a key of `longred.method.rope.ROPE_METHODS`.
        target_window: tokens.
        settings: of the method, and `original_window` if it differs from the configuration's
            max_position_embeddings. None counts as not given.

    Raises:
        ConfigError: method or setting is unknown, a value cannot work, or the method is not
            defined on the model's RoPE.
    """
    if not isinstance(getattr(config, "max_position_embeddings", None), int):
        raise ConfigError(
            "extension: the model's configuration has no max_position_embeddings, the window that "
            "is extended; give a decoder with RoPE, such as Llama"
        )
    given = {name: value for name, value in settings.items() if value is not None}
    original_window = given.pop("original_window", config.max_position_embeddings)
    rope = main_rope(config)
    kind = rope.get("rope_type", "default")
    _check_windows(config, kind, original_window, target_window)
    problem = _nothing_rotates(config) or settings_problem(method, given)
    if problem := problem or _rope_problem(rope, kind, method):
        raise ConfigError(problem)
    before = original_window if kind == "default" else config.max_position_embeddings
    window = Window(
        original=int(rope.get("original_max_position_embeddings", original_window)),
        target=target_window,
        factor=float(rope.get("factor", 1.0)) * (target_window / before),
        dim=rotary_dim(config),
    )
    rescaled = ROPE_METHODS[method].rescale(rope, window, given)
    if "partial_rotary_factor" in rope:
        rescaled["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if problem := _unreadable(config, rescaled, method):
        raise ConfigError(problem)
    extended = copy.deepcopy(config)
    if getattr(extended, "head_dim", 0) is None:
        # Mixtral; transformers' yarn, llama3 and longrope do not compute it.
        extended.head_dim = head_dim(config)
    if hasattr(extended, "original_max_position_embeddings"):
        # Phi-3 stores it here, and transformers prefers this value.
        original = rescaled.get("original_max_position_embeddings", original_window)
        extended.original_max_position_embeddings = original
    set_main_rope(extended, rescaled)
    extended.max_position_embeddings = target_window
    return extended


def usable_methods(config: PreTrainedConfig, target_window: int) -> list[str]:
    """Return the methods that `extend_config` accepts for a model without further settings.

    A model whose RoPE has factors of its own (longrope) is tried with these.
    """
    own = main_rope(config).get("long_factor")
    usable = []
    for name, method in ROPE_METHODS.items():
        settings = {"long_factor": own} if "long_factor" in method.settings else {}
        try:
            extend_config(config, method=name, target_window=target_window, **settings)
        except ConfigError:
            continue
        usable.append(name)
    return usable


class Frequencies(NamedTuple):
    """The rotation of queries and keys by RoPE.

    Attributes:
        inv_freq: angle per position for each pair of dimensions, fp32 [d / 2].
        attention_factor: factor of queries and keys.
    """

    inv_freq: torch.Tensor
    attention_factor: float


def frequencies(
    config: PreTrainedConfig, kind: str = FULL, *, num_tokens: int | None = None
) -> Frequencies:
    """Return RoPE's rotation as transformers computes it.

    Args:
        config: a model's configuration.
        kind: of layer, for models with a RoPE per kind.
        num_tokens: length of the row; None for the full window.
    """
    nested = rope_is_nested(config)
    rope = config.rope_parameters[kind] if nested else config.rope_parameters
    if rope["rope_type"] != "default":
        inv_freq, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](
            copy.deepcopy(config),
            torch.device("cpu"),
            seq_len=num_tokens or config.max_position_embeddings,
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
    search: Mapping[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Write the extended model: configuration, tokenizer, and a reference to the weights.

    Args:
        original: the original model's folder; its RoPE is rescaled.
        folder: an existing or new folder.
        digest: of the model that the weights come from.
        start: the student of a smaller window that the weights come from; None for the original.
        method: a key of `longred.method.rope.ROPE_METHODS`.
        original_window: tokens.
        target_window: tokens.
        search: how the factors were found, to be written with the rest; None if they were given.
        settings: of the method.

    Raises:
        ConfigError: as `extend_config`.
        PreflightError: the original model's configuration cannot be read.
        StorageError: the disk is full.
    """
    before = load_config(original)
    windows = {"original_window": original_window, "target_window": target_window}
    after = extend_config(before, method=method, **windows, **settings)
    notes = _notes(after, method)
    for note in notes:
        log.warning("extension: %s", note)
    rope_before, rope_after = main_rope(before), main_rope(after)
    old, new = frequencies(before), frequencies(after)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_config(after, folder)
        copy_companions(original, folder, max_length=target_window)
        # A student lies beside this folder and moves with it; the original may lie anywhere.
        weights = original.resolve() if start is None else os.path.relpath(start, folder)
        write_json(folder / REFERENCE_NAME, {"folder": str(weights), "digest": digest})
        facts = {
            "method": method,
            **windows,
            "rope_theta_before": rope_before["rope_theta"],
            "rope_theta_after": rope_after["rope_theta"],
            "rope_parameters": rope_after,
            "attention_factor_before": old.attention_factor,
            "attention_factor_after": new.attention_factor,
            "inv_freq_ratio_per_dim": (new.inv_freq / old.inv_freq).tolist(),
            "extended_layers": extended_layers(after),
            "notes": notes,
        }
        if search is not None:
            facts["search"] = search
        write_json(folder / "extension.json", facts)


def _notes(config: PreTrainedConfig, method: str) -> list[str]:
    """Return what a user should know about the extended model, in sentences."""
    notes = []
    kinds, window = layer_types(config), getattr(config, "sliding_window", None)
    if SLIDING in kinds and not rope_is_nested(config):
        which = "every layer" if FULL not in kinds else "the sliding layers"
        notes.append(
            f"{which} of this architecture see the latest {window} tokens only, and share the "
            "rescaled RoPE"
        )
    rope = main_rope(config)
    if switches(rope):
        notes.append(
            f"the student turns by the original RoPE up to {rope[ORIGINAL_LENGTH]:,} tokens and by "
            "the long factors in every row that goes beyond; its drift is profiled at the end of "
            "the target window, since inside the original one it has none"
        )
    elif method == "longrope":
        notes.append(
            "the student turns by the long factors at every length, so that short texts and skipped"
            " positions train one model"
        )
    elif method == "cope":
        num_damped = sum(factor > 1.0 for factor in rope["long_factor"])
        notes.append(
            f"{num_damped} of {len(rope['long_factor'])} pairs of dimensions are damped, the "
            "slowest to a standstill"
        )
    elif method == "drope":
        notes.append(
            "RoPE is off: the student has no positions, and skipped ones train the same as ordinary"
        )
    return notes


def _check_windows(
    config: PreTrainedConfig, kind: str, original_window: Any, target_window: Any
) -> None:
    for name, window in (("original_window", original_window), ("target_window", target_window)):
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ConfigError(f"{name}: must be a whole number of tokens, got {window!r}")
    limit = config.max_position_embeddings
    if original_window > limit:
        raise ConfigError(
            f"original_window: {original_window} exceeds the model's own window of {limit} "
            "(max_position_embeddings)"
        )
    # Qwen2.5 was trained at 32K but its configuration says 128K, so a smaller one is accepted.
    if target_window <= (original_window if kind == "default" else limit) or target_window < limit:
        raise ConfigError(
            f"target_window: {target_window} must be larger than original_window, "
            f"{original_window}, and the model's own window of {limit} (max_position_embeddings)"
        )


def _nothing_rotates(config: PreTrainedConfig) -> str | None:
    """Return why there is nothing to rescale: only sliding layers rotate (EXAONE-4, Cohere-2)."""
    kinds, rotating = layer_types(config), rope_layers(config)
    if FULL not in kinds or any(kinds[layer] == FULL for layer in rotating):
        return None
    return (
        "extension: no layer of full attention has RoPE in this model; rescaling would only change "
        "sliding layers, whose window stays, so there is nothing to extend"
    )


class _Readable(NamedTuple):
    """What transformers reads of an architecture's RoPE.

    Attributes:
        name: of the architecture.
        rope_types: that it reads.
        methods: that give one of these, in words.
    """

    name: str
    rope_types: frozenset[str]
    methods: str


_READABLE = {
    "phi3": _Readable("Phi-3", frozenset({"default", "longrope"}), "abf, ntk, longrope or cope"),
    # Transformers 5 reads more, 4 does not.
    "olmo": _Readable("OLMo", frozenset({"default", "linear"}), "abf, ntk or pi"),
    "olmo2": _Readable("OLMo-2", frozenset({"default", "linear"}), "abf, ntk or pi"),
}


def _unreadable(config: PreTrainedConfig, rescaled: Mapping[str, Any], method: str) -> str | None:
    """Return why transformers 5 or 4 would not read a rescaled RoPE, or None."""
    kind = rescaled["rope_type"]
    readable = _READABLE.get(config.model_type)
    if readable is not None and kind not in readable.rope_types:
        return (
            f"extension.method: {method} gives a RoPE of type {kind}, which transformers' "
            f"{readable.name} does not read; use {readable.methods}"
        )
    if config.model_type == "phi3" and switches(rescaled):
        return (
            "extension.short_factor: Phi-3's attention factor follows from its windows, so that "
            "RoPE inside the original one would not stay exact; remove the key"
        )
    if config.model_type == "olmo3":
        sliding = config.rope_parameters[SLIDING]["rope_theta"]
        if rescaled["rope_theta"] != sliding:
            return (
                f"extension.method: {method} raises rope_theta to {rescaled['rope_theta']:,.0f} in "
                f"full-attention layers alone, and transformers 4 reads one theta, {sliding:,.0f}, "
                "for all layers of OLMo-3; use yarn, llama3, pi or longrope"
            )
    return None


def _rope_problem(rope: Mapping[str, Any], kind: str, method: str) -> str | None:
    """Return why a method is not defined on a model's RoPE, or None."""
    if not isinstance(rope.get("rope_theta"), int | float):
        return "extension: the model's configuration has no rope_theta for all layers"
    if is_dropped(rope):
        return "extension: the model's RoPE is switched off (drope), so there is nothing to rescale"
    if kind in ROPE_METHODS[method].extends:
        return None
    able = [name for name, other in ROPE_METHODS.items() if kind in other.extends]
    advice = f"use {' or '.join(able)}, or " if able else ""
    return (
        f"extension.method: the model's RoPE is already rescaled (rope_type {kind}), and {method} "
        f"is not defined on that; {advice}start from the model before its extension"
    )
