"""The shape of a model: what its costs follow from."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from longred.models.architectures import SLIDING, layer_types


@dataclass(frozen=True, slots=True)
class Linears:
    """Linear layers of one name in all decoder layers.

    Attributes:
        inputs, outputs: features of each.
        count: how many there are.
    """

    inputs: int
    outputs: int
    count: int

    @property
    def num_weights(self) -> int:
        """Weights of all of them, without biases."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    Attributes:
        num_parameters: all, tied ones once.
        num_layers: decoder layers.
        hidden_size, num_heads, num_key_heads, head_dim, intermediate_size, vocab_size: as in the
            configuration.
        linears: linear layers inside the decoder layers, by the last part of their name.
        windows: of each decoder layer, the latest keys that a query sees; None for all.
        is_tied: whether input and output embedding are one.
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
    is_tied: bool

    @cached_property
    def num_linear(self) -> int:
        """Weights of the decoder layers' linear layers."""
        return sum(linears.num_weights for linears in self.linears.values())

    @property
    def num_head(self) -> int:
        """Weights of the output embedding, the LM head."""
        return self.vocab_size * self.hidden_size

    @property
    def attention_size(self) -> int:
        """Values of all query heads of a token."""
        return self.num_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Values of all key heads of a token."""
        return self.num_key_heads * self.head_dim

    def num_adapter(self, lora: Mapping[str, Any]) -> int:
        """Return the weights of low-rank adapters of these `rank` and `targets`."""
        return sum(
            int(lora["rank"]) * (linears.inputs + linears.outputs) * linears.count
            for name, linears in self.linears.items()
            if name in lora["targets"]
        )


def shape_of(config: PreTrainedConfig) -> ModelShape:
    """Return the shape of a configuration's model, built without memory for its weights."""
    own = copy.deepcopy(config)
    loader: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = loader.from_config(own, trust_remote_code=False)
    found: dict[str, Linears] = {}
    for name, module in model.base_model.layers.named_modules():
        if isinstance(module, nn.Linear):
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
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        intermediate_size=int(text.intermediate_size),
        vocab_size=int(text.vocab_size),
        linears=found,
        windows=tuple(window if kind == SLIDING else None for kind in kinds),
        is_tied=model.get_input_embeddings().weight is model.get_output_embeddings().weight,
    )
