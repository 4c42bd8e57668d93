"""Sizes of attention heads, from a model's configuration; imports nothing heavy."""

from typing import Any


def head_dim(config: Any) -> int:
    """Return the dimension of a head's queries and keys.

    With latent attention (DeepSeek) `head_dim` in the configuration is only the rotated part.
    """
    latent = getattr(config, "qk_nope_head_dim", None)
    if latent is not None:
        return int(latent + config.qk_rope_head_dim)
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def value_dim(config: Any) -> int:
    """Return the dimension of a head's values; it differs from `head_dim` in latent attention."""
    return int(getattr(config, "v_head_dim", None) or head_dim(config))
