"""Differences between architectures: which layers slide, where RoPE is set, how logits scale.

Nothing here names a model. An architecture that reads its configuration in another way than these
functions is found by `longred.training.handshake`, which compares with the model's own code.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from longred.attention.heads import head_dim
from longred.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FULL, SLIDING = "full_attention", "sliding_attention"


def refuse_other_parts(model: Any, name: str) -> None:
    """Refuse a model that is not built of the parts that training works on.

    Args:
        model: a causal language model, on any device.
        name: of its architecture, for the message.

    Raises:
        ConfigError: it has other parts; the message names the first missing one.
    """
    base = model.base_model
    wanted = {"embed_tokens": base, "layers": base, "norm": base, "rotary_emb": base}
    missing = [part for part, owner in wanted.items() if not hasattr(owner, part)]
    if not missing:
        missing = [
            f"layers.{number}.{part}"
            for number, layer in enumerate(base.layers)
            for part in ("self_attn", "mlp")
            if not hasattr(layer, part)
        ]
    if missing:
        raise ConfigError(
            f"model.path: architecture {name} has no part {missing[0]}; this works on decoders "
            "built of embed_tokens, layers with self_attn and mlp, norm and rotary_emb, as Llama is"
        )


def layer_types(config: "PreTrainedConfig") -> tuple[str, ...]:
    """Return `full_attention` or `sliding_attention` for each decoder layer."""
    types = getattr(config, "layer_types", None)
    if types is None:
        slides = getattr(config, "sliding_window", None) is not None
        types = [SLIDING if slides else FULL] * config.num_hidden_layers
    return tuple(types)


def rope_is_nested(config: "PreTrainedConfig") -> bool:
    """Return whether each type of layer has its own RoPE, as in Gemma-3."""
    rope = getattr(config, "rope_parameters", None) or {}
    return isinstance(rope.get(FULL), Mapping)


def main_rope(config: "PreTrainedConfig") -> dict[str, Any]:
    """Return the RoPE parameters of the full-attention layers."""
    rope = getattr(config, "rope_parameters", None) or {}
    return dict(rope[FULL] if rope_is_nested(config) else rope)


def set_main_rope(config: "PreTrainedConfig", rope: Mapping[str, Any]) -> None:
    """Set the RoPE parameters of the full-attention layers.

    In every architecture but Gemma-3 all layers share them.
    """
    if rope_is_nested(config):
        config.rope_parameters = {**config.rope_parameters, FULL: dict(rope)}
    else:
        config.rope_parameters = dict(rope)


def rope_layers(config: "PreTrainedConfig") -> list[int]:
    """Return the decoder layers that rotate queries and keys; the others have no positions (NoPE).

    SmolLM3 and Llama 4 list these layers. EXAONE-4 and Cohere-2 rotate in sliding layers only, if
    the model has any.
    """
    layers = range(config.num_hidden_layers)
    listed = getattr(config, "no_rope_layers", None)
    if listed:
        # 1 for a layer with RoPE, in spite of the name.
        return [layer for layer in layers if listed[layer]]
    if config.model_type in ("exaone4", "cohere2") and config.sliding_window is not None:
        return [layer for layer, kind in enumerate(layer_types(config)) if kind == SLIDING]
    return list(layers)


def extended_layers(config: "PreTrainedConfig") -> list[int]:
    """Return the decoder layers whose RoPE an extension changes."""
    types, nested = layer_types(config), rope_is_nested(config)
    return [layer for layer in rope_layers(config) if types[layer] == FULL or not nested]


def rotary_dim(config: "PreTrainedConfig") -> int:
    """Return the number of dimensions of a head that RoPE rotates."""
    rotated = getattr(config, "qk_rope_head_dim", None) or head_dim(config)
    return int(rotated * main_rope(config).get("partial_rotary_factor", 1.0))


def logit_softcap(config: "PreTrainedConfig") -> float | None:
    """Return the soft cap of the output logits (Gemma-2); it is not part of the LM head."""
    cap = getattr(config, "final_logit_softcapping", None)
    return None if cap is None else float(cap)


def logit_scale(config: "PreTrainedConfig") -> float:
    """Return the factor of the output logits: Granite divides by a number, Cohere multiplies."""
    divisor = getattr(config, "logits_scaling", None)
    if divisor:
        return 1.0 / float(divisor)
    return float(getattr(config, "logit_scale", None) or 1.0)


def head_input(config: "PreTrainedConfig", hidden: Any) -> Any:
    """Return hidden states as the LM head must read them to give the model's own logits.

    To scale the hidden states is to scale the logits, and fused losses need not know.
    """
    scale = logit_scale(config)
    return hidden if scale == 1.0 else hidden * scale


def sequence_problem(config: "PreTrainedConfig", degree: int) -> str | None:
    """Return why `degree` processes cannot share a row of this model's tokens, or None."""
    key = f"training.parallel.sequence_parallel: {degree}"
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    # Key heads are repeated until every process has as many.
    if heads % math.lcm(key_heads, degree):
        return (
            f"{key} does not divide the model's {heads} query heads together with its {key_heads} "
            "key-value heads"
        )
    kind = main_rope(config).get("rope_type")
    if degree > 1 and kind in ("dynamic", "longrope"):
        return (
            f"{key} processes would each choose RoPE's frequencies by their own tokens, as rope "
            f"type {kind} does; use 1, or another extension.method"
        )
    return None
