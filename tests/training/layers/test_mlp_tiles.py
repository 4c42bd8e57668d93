"""Tiled MLPs: the same results, fewer bytes, and no additional recomputation."""

import copy

import pytest
import torch
from operator_counts import LiveBytes, OperatorCalls
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedModel,
)

from longred.attention import function as attention
from longred.models.load import hidden_states
from longred.training.layers.activations import CHECKPOINTING, checkpoint_activations
from longred.training.layers.masters import hold_no_copies
from longred.training.layers.mlp_tiles import tile_mlps

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, mlp_bias=True),
    "phi3": Phi3Config(**SHAPE),
    "olmo2": Olmo2Config(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, head_dim=8, query_pre_attn_scalar=8),
}
TOKENS = torch.randint(2, 64, (2, 150), generator=torch.Generator().manual_seed(0))
TILE = 128
NUM_TILES = 3


def build(family: str, kind: str, tile_tokens: int) -> PreTrainedModel:
    attention.register()
    torch.manual_seed(0)
    config = copy.deepcopy(FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="longred")
    attention.guard(model)
    tile_mlps(model, tile_tokens)
    checkpoint_activations(model, kind)
    return model.train()


def gradients(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        states = hidden_states(model, TOKENS, layers=[1, 2])
    (states[1].float().square().sum() + states[2].float().abs().sum()).backward()
    return {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


def error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    difference = sum((found[n].double() - expected[n].double()).square().sum() for n in expected)
    return float((difference / sum(g.double().square().sum() for g in expected.values())).sqrt())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", CHECKPOINTING)
def test_gradients_are_those_without_tiles(family: str, kind: str):
    exact = gradients(build(family, "none", 0).double(), torch.float64)
    found = gradients(build(family, kind, TILE), torch.float32)
    assert error(found, exact) < 1e-5
    rounded = gradients(build(family, kind, TILE), torch.bfloat16)
    plain = gradients(build(family, "none", 0), torch.bfloat16)
    assert error(rounded, exact) < 1.1 * error(plain, exact)


@pytest.mark.parametrize("kind", CHECKPOINTING)
def test_nothing_is_computed_more_often_than_with_checkpointing(kind: str):
    with OperatorCalls() as calls:
        gradients(build("llama", kind, TILE), torch.float32)
    tiles = NUM_TILES * SHAPE["num_hidden_layers"]
    assert calls.counts["aten::silu"] == 2 * tiles
    # Three products with a bias forward; the last is not recomputed.
    assert calls.counts["aten::addmm"] == (3 + 2) * tiles


def test_tiles_lower_the_peak():
    peaks = {}
    for tile_tokens in (0, TILE, 32):
        model = build("llama", "selective", tile_tokens)
        with LiveBytes() as live:
            gradients(model, torch.float32)
        grads = sum(w.numel() * 4 for w in model.parameters())
        peaks[tile_tokens] = live.peak - grads
    assert peaks[TILE] < 0.6 * peaks[0]
    assert peaks[32] < 0.4 * peaks[0]


def test_few_tokens_and_no_tiles_leave_the_forward_alone():
    plain = build("llama", "none", 0)
    assert "forward" not in vars(plain.model.layers[0].mlp)
    with torch.no_grad():
        expected = hidden_states(plain, TOKENS, layers=[2])[2]
        for tile_tokens in (300, TILE):
            tiled = build("llama", "none", tile_tokens)
            found = hidden_states(tiled, TOKENS, layers=[2])[2]
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_weights_are_rounded_anew_before_and_after_a_tile():
    model, plain = build("llama", "none", TILE), build("llama", "none", 0)
    hold_no_copies(model)
    down = model.model.layers[0].mlp.down_proj
    forward = down.forward
    found = gradients(model, torch.bfloat16)
    assert down.forward is forward
    assert error(found, gradients(plain, torch.bfloat16)) < 1e-2


def test_frozen_weights_get_no_gradient():
    model, plain = build("llama", "full", TILE), build("llama", "none", 0)
    for each in (model, plain):
        for name, weight in each.named_parameters():
            weight.requires_grad_("down_proj" in name or "q_proj" in name)
    assert error(gradients(model, torch.float32), gradients(plain, torch.float32)) < 1e-5
