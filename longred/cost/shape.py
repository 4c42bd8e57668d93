"""The shape of a model, from which all costs follow; shapes of the packaged recipes' models."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from longred.attention.heads import head_dim, value_dim
from longred.errors import ConfigError
from longred.models.architectures import SLIDING, layer_types, refuse_other_parts
from longred.recipes import RECIPES

SHAPES = RECIPES / "shapes"
"""Excerpts of each model's published `config.json`, named as in the hub's cache."""


@dataclass(frozen=True, slots=True)
class Linears:
    """All linear layers of one name.

    Attributes:
        inputs, outputs: features of one layer.
        count: number of layers.
    """

    inputs: int
    outputs: int
    count: int

    @property
    def num_weights(self) -> int:
        """Weights of all layers, without biases."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    Attributes:
        num_parameters: all parameters, tied ones counted once.
        num_layers: decoder layers.
        hidden_size, num_heads, num_key_heads, head_dim, intermediate_size, vocab_size: as in the
            configuration.
        linears: linear layers inside the decoder layers, by the last part of their name.
        windows: sliding window of each decoder layer, keys; None for full attention.
        num_attention: weights and biases of the linear layers inside self-attention.
        is_tied: whether input and output embedding share weights.
        value_dim: dimension of a head's values; 0 if it is `head_dim`.
        num_used_experts: weights of the experts that one token passes through, over all layers;
            they are no linear layers.
    """

    num_parameters: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_key_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    linears: Mapping[str, Linears]
    windows: tuple[int | None, ...]
    num_attention: int
    is_tied: bool
    value_dim: int = 0
    num_used_experts: float = 0.0

    @cached_property
    def num_linear(self) -> int:
        """Weights of all linear layers in the decoder layers."""
        return sum(linears.num_weights for linears in self.linears.values())

    @property
    def num_used(self) -> float:
        """Weights in the decoder layers that one token is multiplied with."""
        return self.num_linear + self.num_used_experts

    @property
    def num_head(self) -> int:
        """Weights of the LM head."""
        return self.vocab_size * self.hidden_size

    @property
    def attention_size(self) -> int:
        """Query features per token: num_heads * head_dim."""
        return self.num_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Key features per token: num_key_heads * head_dim."""
        return self.num_key_heads * self.head_dim

    def num_adapter(self, lora: Mapping[str, Any]) -> int:
        """Return the number of weights of LoRA adapters with this `rank` and these `targets`."""
        return sum(
            int(lora["rank"]) * (linears.inputs + linears.outputs) * linears.count
            for name, linears in self.linears.items()
            if name in lora["targets"]
        )


def shape_of(config: PreTrainedConfig) -> ModelShape:
    """Return the shape of a model, built on the meta device from its configuration.

    Raises:
        ConfigError: the model is not a causal language model that transformers knows, or is not
            built of decoder layers with self-attention.
    """
    own = copy.deepcopy(config)
    loader: Any = AutoModelForCausalLM
    named = (getattr(config, "architectures", None) or [type(config).__name__])[0]
    try:
        with torch.device("meta"):
            model = loader.from_config(own, trust_remote_code=False)
    except ValueError:
        raise ConfigError(
            f"model.path: architecture {named} is no causal language model of this transformers; "
            "give a decoder such as Llama"
        ) from None
    refuse_other_parts(model, named)
    found: dict[str, Linears] = {}
    num_attention = 0
    for name, module in model.base_model.layers.named_modules():
        if isinstance(module, nn.Linear):
            if ".self_attn." in name:
                num_attention += sum(weight.numel() for weight in module.parameters())
            last = name.rpartition(".")[2]
            count = found[last].count + 1 if last in found else 1
            found[last] = Linears(module.in_features, module.out_features, count)
    text = model.config
    heads = int(text.num_attention_heads)
    window = getattr(text, "sliding_window", None)
    kinds = layer_types(text)
    return ModelShape(
        num_parameters=sum(weight.numel() for weight in model.parameters()),
        num_layers=int(text.num_hidden_layers),
        hidden_size=int(text.hidden_size),
        num_heads=heads,
        num_key_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=head_dim(text),
        intermediate_size=_intermediate_size(text),
        vocab_size=int(text.vocab_size),
        linears=found,
        windows=tuple(window if kind == SLIDING else None for kind in kinds),
        num_attention=num_attention,
        is_tied=model.get_input_embeddings().weight is model.get_output_embeddings().weight,
        value_dim=value_dim(text),
        num_used_experts=_used_experts(model),
    )


def _intermediate_size(config: Any) -> int:
    """Return the inner dimension of MLPs; some models of experts give that of an expert alone."""
    for name in ("intermediate_size", "moe_intermediate_size"):
        given = getattr(config, name, None)
        if isinstance(given, int):
            return given
    raise ConfigError(
        "model.path: the model's config.json gives no one intermediate_size of its MLPs, which "
        "this needs; give a decoder such as Llama"
    )


def _used_experts(model: Any) -> float:
    """Return the expert weights that one token is multiplied with."""
    chosen = int(getattr(model.config, "num_experts_per_tok", None) or 1)
    # Experts are stacked in one tensor, one expert after the other.
    stacked = [w for w in model.base_model.layers.parameters() if w.ndim == 3]
    return float(sum(w[0].numel() * min(chosen, len(w)) for w in stacked))


def named_config(path: str) -> PreTrainedConfig | None:
    """Return the packaged configuration of a hub model; None if there is none."""
    file = SHAPES / f"{path.replace('/', '--')}.json"
    if not file.is_file():
        return None
    config: PreTrainedConfig = AutoConfig.for_model(**json.loads(file.read_text(encoding="utf-8")))
    return config
