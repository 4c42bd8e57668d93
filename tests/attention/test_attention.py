import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from longred.attention import function as attention
from longred.attention.documents import document_bounds
from longred.method.positions import skip_positions
from longred.models.load import hidden_states, load_model, run_layers
from longred.training.layers.activations import checkpoint_activations

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "mistral": lambda: MistralConfig(**SHAPE, head_dim=8, sliding_window=None),
    "mistral-window": lambda: MistralConfig(**SHAPE, head_dim=8, sliding_window=24),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen2-window": lambda: Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=24, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=8),
    "phi3": lambda: Phi3Config(**SHAPE, pad_token_id=0, rope_parameters=PARTIAL_ROPE),
    "olmo2": lambda: Olmo2Config(**SHAPE),
    # Caps far below the logits, so that a missing cap shows.
    "gemma2": lambda: Gemma2Config(**GEMMA, attn_logit_softcapping=2.0),
    "gemma3": lambda: Gemma3TextConfig(
        **GEMMA, layer_types=["sliding_attention", *["full_attention"] * 2]
    ),
    "smollm3": lambda: SmolLM3Config(**SHAPE, pad_token_id=0, no_rope_layer_interval=2),
    "glm4": lambda: Glm4Config(**SHAPE, head_dim=8, pad_token_id=0),
    "deepseek-v3": lambda: DeepseekV3Config(**{**SHAPE, **LATENT}, experts_implementation="eager"),
    "cohere": lambda: CohereConfig(**SHAPE, logit_scale=0.3, pad_token_id=0),
}
PARTIAL_ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
GEMMA = {**SHAPE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 24}
LATENT = {
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
}
WINDOW_LAYERS = {
    "mistral-window": (24, 24, 24),
    "qwen2-window": (None, 24, 24),
    "gemma2": (24, None, 24),
    "gemma3": (24, None, None),
}


def build(config: PreTrainedConfig, implementation: str) -> PreTrainedModel:
    attention.register()
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), attn_implementation=implementation
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Sharp attention, so that a wrong mask shows.
            if "q_norm" in name:
                parameter.add_(1.0)
            is_sharp = any(part in name for part in ("q_proj", "k_proj", "qkv_proj", "q_b_proj"))
            parameter.mul_(8.0 if is_sharp else 2.0)
    if implementation == attention.ATTENTION_NAME:
        attention.guard(model)
    return model.double()


def assert_near(got: Tensor, expected: Tensor) -> None:
    """Equal up to the fp32 inside transformers' norms and softmax; a wrong mask gives about 1."""
    assert ((got - expected).norm() / expected.norm()).item() < 5e-5


def causal_mask(length: int, window: int | None, document_ids_BT: Tensor | None = None) -> Tensor:
    """A dense additive mask [B or 1, 1, T, T]."""
    place = torch.arange(length)
    behind = place[:, None] - place[None, :]
    seen = behind >= 0
    if window is not None:
        seen &= behind < window
    seen = seen[None, None]
    if document_ids_BT is not None:
        seen = seen & (document_ids_BT[:, None, :, None] == document_ids_BT[:, None, None, :])
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, float("-inf"))


def reference(
    model: PreTrainedModel,
    input_ids_BT: Tensor,
    position_ids_BT: Tensor,
    windows: tuple[int | None, ...],
    document_ids_BT: Tensor | None = None,
) -> Tensor:
    """The final hidden state of an eager model with one explicit 4-D mask per layer."""
    base = model.base_model
    hidden = base.embed_tokens(input_ids_BT)
    for layer, window in zip(base.layers, windows, strict=True):
        kind = "full_attention" if window is None else "sliding_attention"
        nested = {"layer_type": kind} if model.config.model_type == "gemma3_text" else {}
        rotations = base.rotary_emb(hidden, position_ids=position_ids_BT, **nested)
        mask = causal_mask(input_ids_BT.shape[1], window, document_ids_BT)
        hidden = layer(
            hidden,
            attention_mask=mask,
            position_ids=position_ids_BT,
            position_embeddings=rotations,
        )
    return base.norm(hidden)


def skipped(length: int, rows: int) -> Tensor:
    generator = np.random.default_rng(0)
    return skip_positions(
        "cream",
        original_window=length,
        target_window=4 * length,
        num_rows=rows,
        generator=generator,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_skipped_positions_equal_an_explicit_causal_mask(
    family: str, rows: int, checkpointing: str
) -> None:
    config = FAMILIES[family]()
    student, eager = build(config, "longred"), build(config, "eager")
    checkpoint_activations(student, checkpointing)
    student.train()
    tokens = torch.randint(0, 50, (rows, 96))
    positions = skipped(96, rows)
    windows = WINDOW_LAYERS.get(family, (None, None, None))
    expected = reference(eager, tokens, positions, windows)
    got = hidden_states(student, tokens, layers=[3], position_ids_BT=positions)[3]
    assert_near(got, expected)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (got * weight).sum().backward()
    others = dict(eager.named_parameters())
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            assert_near(parameter.grad, others[name].grad)
    assert student.base_model.embed_tokens.weight.grad is not None


def test_eager_call_with_an_explicit_4d_mask_agrees_with_the_layerwise_reference() -> None:
    eager = build(FAMILIES["llama"](), "eager")
    tokens, positions = torch.randint(0, 50, (2, 96)), skipped(96, 2)
    whole = eager.base_model(tokens, attention_mask=causal_mask(96, None), position_ids=positions)
    layerwise = reference(eager, tokens, positions, (None, None, None))
    torch.testing.assert_close(whole.last_hidden_state, layerwise)


def test_no_mask_function_is_registered() -> None:
    attention.register()
    attention.register()
    assert attention.ATTENTION_NAME not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_packed_documents_equal_documents_alone(family: str, checkpointing: str) -> None:
    config = FAMILIES[family]()
    student, eager = build(config, "longred"), build(config, "eager")
    checkpoint_activations(student, checkpointing)
    student.train()
    tokens = torch.randint(0, 50, (3, 90))
    documents = torch.zeros(3, 90, dtype=torch.int32)
    documents[0, 7:] = 1
    documents[0, 50:] = 2
    documents[2, 89:] = 5
    positions = torch.arange(90).expand(3, -1)
    got = hidden_states(student, tokens, layers=[3], document_ids_BT=documents)[3]
    windows = WINDOW_LAYERS.get(family, (None, None, None))
    expected = reference(eager, tokens, positions, windows, documents)
    assert_near(got, expected)
    alone = hidden_states(
        student, tokens[:1, 7:50], layers=[3], position_ids_BT=torch.arange(7, 50)[None]
    )[3]
    assert_near(got[:1, 7:50], alone)


def test_lm_forward_takes_documents_too() -> None:
    student = build(FAMILIES["llama"](), "longred").eval()
    tokens = torch.randint(0, 50, (1, 20))
    documents = (torch.arange(20) >= 12).int()[None]
    packed = student(tokens, document_ids_BT=documents).logits
    other = tokens.clone()
    other[:, :12] = (other[:, :12] + 1) % 50
    torch.testing.assert_close(
        packed[:, 12:], student(other, document_ids_BT=documents).logits[:, 12:]
    )


def test_documents_reach_the_attention_without_the_guard() -> None:
    attention.register()
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(FAMILIES["llama"](), attn_implementation="longred")
    guarded = copy.deepcopy(plain)
    attention.guard(guarded)
    tokens, documents = torch.randint(0, 50, (1, 20)), (torch.arange(20) >= 12).int()[None]
    states = [
        hidden_states(m, tokens, layers=[3], document_ids_BT=documents)[3] for m in (plain, guarded)
    ]
    assert torch.equal(*states)


def test_document_bounds() -> None:
    ids = torch.tensor([[0, 0, 1, 0], [3, 3, 3, 3]])
    assert document_bounds(ids) == (((0, 2), (2, 3), (3, 4)), ((0, 4),))
    assert document_bounds(ids[1:]) is None


def test_padding_and_other_masks_are_refused() -> None:
    student = build(FAMILIES["llama"](), "longred")
    tokens = torch.randint(0, 50, (2, 8))
    padding = torch.ones(2, 8, dtype=torch.long)
    student(tokens, attention_mask=padding)
    padding[0, 0] = 0
    for mask in (padding, causal_mask(8, None)):
        with pytest.raises(ValueError, match="takes no attention_mask"):
            student(tokens, attention_mask=mask)
        with pytest.raises(ValueError, match="takes no attention_mask"):
            student.base_model(tokens, mask)


def test_document_ids_must_fit() -> None:
    student = build(FAMILIES["llama"](), "longred")
    tokens = torch.randint(0, 50, (2, 8))
    with pytest.raises(ValueError, match="document_ids_BT has shape"):
        student(tokens, document_ids_BT=torch.zeros(2, 7))


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_with_a_cache_equals_one_forward(family: str) -> None:
    student = build(FAMILIES[family](), "longred").eval()
    tokens = torch.randint(0, 50, (2, 60))
    with torch.no_grad():
        whole = student(tokens).logits
        first = student(tokens[:, :30], use_cache=True)
        second = student(tokens[:, 30:45], past_key_values=first.past_key_values)
        parts = [first.logits, second.logits]
        for place in range(45, 60):
            step = student(tokens[:, place : place + 1], past_key_values=first.past_key_values)
            parts.append(step.logits)
    assert_near(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_run_one_by_one_equal_the_forward(family: str) -> None:
    student = build(FAMILIES[family](), "longred").eval()
    tokens, positions = torch.randint(0, 50, (2, 60)), skipped(60, 2)
    with torch.no_grad():
        for position_ids in (None, positions):
            expected = hidden_states(
                student, tokens, layers=[1, 2, 3], position_ids_BT=position_ids
            )
            outputs = list(run_layers(student, tokens, position_ids_BT=position_ids))
            for output in outputs:
                assert torch.equal(output.hidden_BTD, expected[output.layer + 1])
    windows = WINDOW_LAYERS.get(family, (None, None, None))
    assert [output.captured.sliding_window for output in outputs] == list(windows)
    assert [output.captured.layer for output in outputs] == [0, 1, 2]
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    assert [output.kind for output in outputs] == kinds
    assert outputs[0].captured.softcap == (2.0 if family == "gemma2" else None)


def test_cu_seqlens_say_what_document_ids_say() -> None:
    student = build(FAMILIES["llama"](), "longred").eval()
    tokens = torch.randint(0, 50, (2, 20))
    documents = torch.tensor([[0] * 12 + [1] * 8, [0] * 20])
    ends = torch.tensor([0, 12, 20, 40], dtype=torch.int32)
    found = attention.find_documents(documents)
    assert found is not None
    assert torch.equal(found.cu_seqlens, ends)
    assert found.max_length == 20
    by_ids = student(tokens, document_ids_BT=documents).logits
    assert torch.equal(student(tokens, cu_seqlens=ends).logits, by_ids)
    with pytest.raises(ValueError, match="a document crosses token 20"):
        student(tokens, cu_seqlens=torch.tensor([0, 12, 40]))
    with pytest.raises(ValueError, match="must rise from 0 to 40"):
        student(tokens, cu_seqlens=torch.tensor([0, 20, 20, 39]))


def test_capture_gives_rotated_queries_and_unrepeated_keys() -> None:
    student = build(FAMILIES["qwen2-window"](), "longred").eval()
    captured: list[attention.Captured] = []
    student.base_model(torch.randint(0, 50, (2, 40)), capture=captured.append)
    assert [item.layer for item in captured] == [0, 1, 2]
    assert [item.sliding_window for item in captured] == [None, 24, 24]
    assert captured[0].query_BHTd.shape == (2, 4, 40, 8)
    assert captured[0].key_BhTd.shape == (2, 2, 40, 8)
    assert captured[0].value_BhTd.shape == (2, 2, 40, 8)
    base = student.base_model
    shifted: list[attention.Captured] = []
    base(torch.zeros(1, 40, dtype=torch.long), capture=shifted.append)
    # One token throughout: without RoPE all keys would be equal.
    assert not torch.allclose(shifted[0].key_BhTd[0, 0, 0], shifted[0].key_BhTd[0, 0, 20])


def test_loaded_model_uses_the_attention(tiny_model_folder: Path) -> None:
    model = load_model(tiny_model_folder)
    assert model.config._attn_implementation == "longred"
    eager = load_model(tiny_model_folder, attention="eager")
    tokens = torch.randint(0, 100, (2, 40))
    torch.testing.assert_close(model(tokens).logits, eager(tokens).logits, atol=1e-5, rtol=1e-4)


def test_heads_can_be_viewed_as_one_dimension() -> None:
    query_BHTd, key_BhTd = torch.randn(2, 4, 16, 8), torch.randn(2, 2, 16, 8)
    for value_size in (8, 4):
        value_BhTd = torch.randn(2, 2, 16, value_size)
        output_BTHd, _ = attention.attend(nn.Module(), query_BHTd, key_BhTd, value_BhTd, None)
        assert output_BTHd.view(2, 16, -1).shape == (2, 16, 4 * value_size)
