"""Differences between supported architectures: which layers slide, where RoPE is set."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Phi3ForCausalLM",
    "Olmo2ForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
)
FULL, SLIDING = "full_attention", "sliding_attention"


def layer_types(config: "PreTrainedConfig") -> tuple[str, ...]:
    """Return `full_attention` or `sliding_attention` for each decoder layer."""
    types = getattr(config, "layer_types", None)
    if types is None:
        slides = getattr(config, "sliding_window", None) is not None
        types = [SLIDING if slides else FULL] * config.num_hidden_layers
    return tuple(types)


def rope_is_nested(config: "PreTrainedConfig") -> bool:
    """Return whether each type of layer has its own RoPE, as in Gemma-3."""
    return isinstance((config.rope_parameters or {}).get(FULL), Mapping)


def main_rope(config: "PreTrainedConfig") -> dict[str, Any]:
    """Return the RoPE parameters of the full-attention layers."""
    rope = config.rope_parameters or {}
    return dict(rope[FULL] if rope_is_nested(config) else rope)


def set_main_rope(config: "PreTrainedConfig", rope: Mapping[str, Any]) -> None:
    """Set the RoPE parameters of the full-attention layers.

    In every architecture but Gemma-3 all layers share them.
    """
    if rope_is_nested(config):
        config.rope_parameters = {**config.rope_parameters, FULL: dict(rope)}
    else:
        config.rope_parameters = dict(rope)


def extended_layers(config: "PreTrainedConfig") -> list[int]:
    """Return the decoder layers whose RoPE an extension changes."""
    types = layer_types(config)
    return [layer for layer, kind in enumerate(types) if kind == FULL or not rope_is_nested(config)]


def rotary_dim(config: "PreTrainedConfig") -> int:
    """Return the number of dimensions of a head that RoPE rotates."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head_dim * main_rope(config).get("partial_rotary_factor", 1.0))


def logit_softcap(config: "PreTrainedConfig") -> float | None:
    """Return the soft cap of the output logits (Gemma-2); it is not part of the LM head."""
    cap = getattr(config, "final_logit_softcapping", None)
    return None if cap is None else float(cap)


def sequence_problem(config: "PreTrainedConfig", degree: int) -> str | None:
    """Return why `degree` processes cannot share a row of this model's tokens, or None."""
    key = f"training.parallel.sequence_parallel: {degree}"
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if heads % degree:
        return f"{key} does not divide the model's {heads} key-value heads"
    kind = main_rope(config).get("rope_type")
    if degree > 1 and kind in ("dynamic", "longrope"):
        return (
            f"{key} processes would each choose RoPE's frequencies by their own tokens, as rope "
            f"type {kind} does; use 1, or another extension.method"
        )
    return None
