"""Extend, profile, train, save, load and generate with every architecture."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import ORIGINAL, TARGET, MakeJob
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    DeepseekV3Config,
    Ernie4_5Config,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    GraniteConfig,
    HeliumConfig,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    Starcoder2Config,
)

from longred.method.selection import select_layers
from longred.models.architectures import head_input, logit_softcap
from longred.models.extension import write_extension
from longred.models.folder import COMPANIONS
from longred.models.load import hidden_states, load_model, resolve_model
from longred.objectives.cross_entropy import long_loss
from longred.profiling.drift import profile_drift, start_beyond
from longred.training.loop import train

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": ORIGINAL,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.2,
}
GEMMA = {**SHAPE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 24}
LONG = {"short_factor": [1.0] * 3, "long_factor": [1.0, 1.5, 3.0]}
PHI3_LONGROPE = {**LONG, "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75}
LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

MIXED = ["sliding_attention", "sliding_attention", "full_attention"]
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
}

Make = Callable[[], PreTrainedConfig]
CASES: dict[str, tuple[Make, str, dict[str, Any]]] = {
    "llama": (lambda: LlamaConfig(**SHAPE), "yarn", {}),
    "llama-cope": (lambda: LlamaConfig(**SHAPE), "cope", {"rope_theta": 1e5, "num_clipped": 3}),
    "llama-drope": (lambda: LlamaConfig(**SHAPE), "drope", {}),
    "llama-mixed": (lambda: LlamaConfig(**SHAPE), "longrope", {"short_factor": "original"}),
    "llama-3.1": (lambda: LlamaConfig(**SHAPE, rope_parameters=LLAMA31), "llama3", {}),
    "mistral-window": (
        lambda: MistralConfig(**SHAPE, head_dim=8, sliding_window=24),
        "abf",
        {"rope_theta": 1e5},
    ),
    "qwen2-window": (
        lambda: Qwen2Config(
            **SHAPE,
            use_sliding_window=True,
            sliding_window=24,
            max_window_layers=1,
            tie_word_embeddings=True,
        ),
        "ntk",
        {},
    ),
    "qwen3": (lambda: Qwen3Config(**SHAPE, head_dim=8), "llama3", {}),
    "phi3": (
        lambda: Phi3Config(**SHAPE, original_max_position_embeddings=ORIGINAL),
        "longrope",
        {},
    ),
    "phi3-longrope": (
        lambda: Phi3Config(
            **SHAPE, original_max_position_embeddings=16, rope_parameters=PHI3_LONGROPE
        ),
        "longrope",
        {"long_factor": [1.0, 2.0, 6.0]},
    ),
    "olmo2": (lambda: Olmo2Config(**SHAPE), "pi", {}),
    "gemma2": (
        lambda: Gemma2Config(**GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
        "abf",
        {"rope_theta": 1e5},
    ),
    "gemma3": (lambda: Gemma3TextConfig(**GEMMA, sliding_window_pattern=3), "yarn", {}),
    "smollm3": (lambda: SmolLM3Config(**SHAPE, no_rope_layer_interval=3), "yarn", {}),
    "glm4": (lambda: Glm4Config(**SHAPE, head_dim=8), "abf", {}),
    "olmo3": (lambda: Olmo3Config(**SHAPE, sliding_window=24, layer_types=MIXED), "yarn", {}),
    "gemma": (lambda: GemmaConfig(**SHAPE, head_dim=8), "pi", {}),
    "ministral": (
        lambda: MinistralConfig(**SHAPE, head_dim=8, sliding_window=24, layer_types=MIXED),
        "abf",
        {},
    ),
    "starcoder2": (lambda: Starcoder2Config(**SHAPE, sliding_window=24), "abf", {}),
    "exaone4": (
        lambda: Exaone4Config(**SHAPE, sliding_window=None, layer_types=["full_attention"] * 3),
        "llama3",
        {},
    ),
    "helium": (lambda: HeliumConfig(**SHAPE, head_dim=8), "ntk", {}),
    "ernie4_5": (lambda: Ernie4_5Config(**SHAPE, head_dim=8), "abf", {}),
    "qwen3-moe": (
        lambda: Qwen3MoeConfig(**SHAPE, **EXPERTS, head_dim=8, num_experts=4),
        "yarn",
        {},
    ),
    "mixtral": (
        lambda: MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
        "abf",
        {},
    ),
    "deepseek-v3": (lambda: DeepseekV3Config(**{**SHAPE, **EXPERTS, **LATENT}), "abf", {}),
    "granite": (
        lambda: GraniteConfig(
            **SHAPE,
            logits_scaling=3.0,
            embedding_multiplier=5.0,
            residual_multiplier=0.5,
            attention_multiplier=0.2,
        ),
        "abf",
        {},
    ),
    "cohere": (lambda: CohereConfig(**SHAPE, logit_scale=0.3), "abf", {}),
}
CHAT = "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}"


@pytest.mark.medium
@pytest.mark.parametrize("case", CASES)
def test_the_whole_path(
    case: str, make_job: MakeJob, tiny_model_folder: Path, tmp_path: Path
) -> None:
    make_config, method, settings = CASES[case]
    original, student = tmp_path / "original", tmp_path / "student"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(make_config()).save_pretrained(original)
    for name in COMPANIONS:
        if (tiny_model_folder / name).is_file():
            shutil.copyfile(tiny_model_folder / name, original / name)
    (original / "chat_template.jinja").write_text(CHAT)
    assert resolve_model(str(original)) == original
    write_extension(
        original,
        student,
        digest="0",
        method=method,
        original_window=ORIGINAL,
        target_window=TARGET,
        **settings,
    )
    rows = torch.randint(2, 500, (2, 32))
    extended = load_model(student)
    start = start_beyond(extended.config, 32)
    assert start == (TARGET - 32 if "short_factor" in settings else 0)
    drift = profile_drift(load_model(original), extended, rows, batch_rows=2, student_start=start)
    assert max(drift.attention_kl) > 0
    layers = select_layers(drift.attention_kl, strategy="attention_kl", num_distill_layers=2)
    job = make_job(
        teacher_folder=str(original),
        student_folder=str(student),
        distill_layers=layers,
        num_steps=2,
        save_every_steps=2,
        activation_checkpointing="selective",
        logit_distill_weight=1.0,
    )
    result = train(job, tmp_path / "work")
    summary = json.loads((result / "training.json").read_text())
    assert 0 < summary["final"]["train/short_to_long_loss"] < 2
    assert_it_reads_back(result, student)


def assert_it_reads_back(result: Path, student: Path) -> None:
    """Check that the weights changed and that transformers and the trainer agree on them."""
    prompt = torch.randint(2, 500, (1, TARGET - 8))
    before, ours = load_model(student), load_model(resolve_model(str(result)))
    theirs = AutoModelForCausalLM.from_pretrained(result)
    assert theirs.config.max_position_embeddings == TARGET
    last = ours.config.num_hidden_layers
    with torch.no_grad():
        states = hidden_states(ours, prompt, layers=[last])[last]
        assert not torch.allclose(states, hidden_states(before, prompt, layers=[last])[last])
        expected = theirs(prompt, labels=prompt, output_hidden_states=True)
        torch.testing.assert_close(states, expected.hidden_states[last], atol=2e-5, rtol=1e-4)
        weight, cap = ours.get_output_embeddings().weight, logit_softcap(ours.config)
        loss = long_loss(head_input(ours.config, states), weight, prompt, logit_softcap=cap)
        torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)
        generated = theirs.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None)
        assert torch.equal(
            ours.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None), generated
        )
    tokenizer = AutoTokenizer.from_pretrained(result)
    message = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "<user> hello\n"
    assert tokenizer.model_max_length == TARGET
