"""Whether the configuration of an extended model survives its export."""

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from longred.models.architectures import FULL, SLIDING, rope_is_nested
from longred.models.extension import frequencies
from longred.models.folder import write_config
from longred.models.load import load_config

_NOT_COMPARED = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}


def read_back(extended: PreTrainedConfig) -> tuple[str, bool]:
    """Write a configuration as an export does, and read it back.

    Returns:
        The result in words, and whether nothing changed.
    """
    with tempfile.TemporaryDirectory(prefix="longred-handshake-") as name:
        write_config(extended, Path(name))
        back = load_config(Path(name))
    if back.max_position_embeddings != extended.max_position_embeddings:
        return f"reads back a window of {back.max_position_embeddings} tokens", False
    if rope_is_nested(extended) and not rope_is_nested(back):
        text = (
            "loses the RoPE of each kind of layer: this architecture does not read it beside the "
            "older keys rope_scaling and rope_theta, which other tools need"
        )
        return text, False
    for kind in (FULL, SLIDING) if rope_is_nested(extended) else (FULL,):
        inv_freq, attention_factor = frequencies(extended, kind)
        read = frequencies(back, kind)
        if not torch.equal(inv_freq, read.inv_freq):
            return f"RoPE of {kind} reads back with other frequencies", False
        if not math.isclose(attention_factor, read.attention_factor, rel_tol=1e-6):
            return f"RoPE of {kind} reads back with another attention factor", False
    ours, theirs = _comparable(extended), _comparable(back)
    lost = sorted(key for key in ours if ours[key] != theirs.get(key))
    if lost:
        return f"reads back other values of {', '.join(lost)}", False
    return "the configuration reads back unchanged", True


def _comparable(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the values of a configuration that reading it back must not change."""
    values = {key: v for key, v in config.to_dict().items() if key not in _NOT_COMPARED}
    # Compared by what they make: Phi-3's file leaves out what follows from its windows.
    derived = ("type", "factor", "attention_factor")
    rope = {key: v for key, v in config.rope_parameters.items() if key not in derived}
    return {**values, "rope_parameters": rope}
