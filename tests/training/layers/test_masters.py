"""Linear layers on float32 masters: bit-identical to autocast, without its weight copies."""

import copy

import pytest
import torch
from operator_counts import LiveBytes
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from longred.attention import function as attention
from longred.models.load import hidden_states
from longred.training.layers.activations import CHECKPOINTING, checkpoint_activations
from longred.training.layers.masters import hold_no_copies

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
FAMILIES = {"llama": LlamaConfig(**SHAPE), "qwen2": Qwen2Config(**SHAPE)}
"""qwen2 has biases."""


def build(family: str, kind: str, *, masters: bool) -> PreTrainedModel:
    attention.register()
    torch.manual_seed(0)
    config = copy.deepcopy(FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="longred")
    attention.guard(model)
    if masters:
        hold_no_copies(model)
    checkpoint_activations(model, kind)
    return model.train()


def run(model: PreTrainedModel, tokens: torch.Tensor, live: LiveBytes | None = None):
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        states = hidden_states(model, tokens, layers=[1, 3])
    held = live.now if live else 0
    (states[1].float().square().sum() + states[3].float().abs().sum()).backward()
    grads = {name: w.grad for name, w in model.named_parameters() if w.grad is not None}
    return states, grads, held


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", CHECKPOINTING)
def test_the_bits_are_those_of_autocast(family: str, kind: str):
    tokens = torch.randint(2, 64, (2, 40))
    expected, expected_grads, _ = run(build(family, kind, masters=False), tokens)
    found, grads, _ = run(build(family, kind, masters=True), tokens)
    assert all(torch.equal(found[layer], expected[layer]) for layer in expected)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        assert torch.equal(grad, expected_grads[name]), name


def test_no_copy_of_a_weight_is_held():
    tokens = torch.randint(2, 64, (1, 8))
    held = {}
    for masters in (False, True):
        model = build("llama", "none", masters=masters)
        with LiveBytes() as live:
            _, _, held[masters] = run(model, tokens, live)
    weights = sum(w.numel() for w in model.model.layers.parameters() if w.ndim == 2)
    assert held[False] - held[True] == 2 * weights


def test_outside_autocast_nothing_changes():
    tokens = torch.randint(2, 64, (1, 8))
    plain, ours = (build("llama", "none", masters=masters) for masters in (False, True))
    for model in (plain, ours):
        hidden_states(model, tokens, layers=[3])[3].sum().backward()
    for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)
