"""The handshake: what passes, and planted faults that must not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_architectures import CASES
from tiny_training import ORIGINAL, TARGET
from torch import nn
from transformers import (
    AriaTextConfig,
    AutoModelForCausalLM,
    Exaone4Config,
    GptOssConfig,
    LlamaConfig,
    MellumConfig,
    MiniMaxConfig,
    StableLmConfig,
)
from transformers.models.granite import modeling_granite
from transformers.models.llama import modeling_llama

from longred.attention.backends import BACKENDS
from longred.attention.sdpa import Rules
from longred.errors import ConfigError, MismatchError, PreflightError
from longred.models.extension import extend_config, write_extension
from longred.models.first_layers import bytes_needed, num_first_layers, shortened
from longred.models.load import load_config
from longred.training.handshake import MEMORY, Finding, require, shake_hands
from longred.training.own_code import compared_gradients

CPU = torch.device("cpu")


def made(config: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def findings(
    folder: Path, method: str = "abf", settings: dict[str, Any] | None = None
) -> dict[str, Finding]:
    config = load_config(folder)
    extended = extend_config(
        config,
        method=method,
        original_window=ORIGINAL,
        target_window=TARGET,
        **(settings or {}),
    )
    found = shake_hands(folder, extended, device=CPU, dtype=torch.bfloat16)
    return {one.part: one for one in found}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return made(CASES["llama"][0](), tmp_path / "llama")


@pytest.mark.parametrize("case", CASES)
def test_every_architecture_passes(case: str, tmp_path: Path) -> None:
    make_config, method, settings = CASES[case]
    found = findings(made(make_config(), tmp_path), method, settings)
    assert [one for one in found.values() if not one.passed] == []
    assert len(found) == 10


def test_logits_that_the_model_scales_are_seen(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = modeling_llama.LlamaForCausalLM.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = own(self, *args, **kwargs)
        output.logits = output.logits / 8
        return output

    monkeypatch.setattr(modeling_llama.LlamaForCausalLM, "forward", scaled)
    found = findings(llama)
    assert found["loss"].passed is False
    assert "the model's own are 0.125 times as large" in found["loss"].text
    assert found["attention, packed rows"].passed


def test_a_scale_under_another_name_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(CASES["granite"][0](), tmp_path)
    own = modeling_granite.GraniteForCausalLM.forward

    def scaled_twice(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = own(self, *args, **kwargs)
        output.logits = output.logits / self.config.residual_multiplier
        return output

    monkeypatch.setattr(modeling_granite.GraniteForCausalLM, "forward", scaled_twice)
    assert "2 times as large" in findings(folder)["loss"].text


def test_an_attention_that_ignores_its_mask_is_seen(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = modeling_llama.eager_attention_forward

    def unmasked(
        module: Any, query: Any, key: Any, value: Any, mask: Any, *args: Any, **kwargs: Any
    ) -> Any:
        return own(module, query, key, value, None, *args, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", unmasked)
    found = findings(llama)
    for rows in ("ordinary", "skipped", "packed"):
        assert found[f"attention, {rows} rows"].passed is False
    assert found["loss"].passed


def test_documents_that_training_would_ignore_are_seen(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longred.attention.function.find_documents", lambda *args: None)
    found = findings(llama)
    assert found["attention, skipped rows"].passed
    assert found["attention, packed rows"].passed is False
    assert "of 256 tokens by more than 0.001" in found["attention, packed rows"].text
    assert found["gradients"].passed is False


def test_a_window_that_training_would_ignore_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(CASES["mistral-window"][0](), tmp_path)

    def without_window(scale: Any, dropout: Any, window: Any, *rest: Any) -> Rules:
        return Rules(scale, dropout, None, *rest)

    monkeypatch.setattr("longred.attention.function.Rules", without_window)
    found = findings(folder)["attention, ordinary rows"]
    assert found.passed is False
    # The first 24 tokens see all before them in any case.
    assert "on 232 of 256 tokens" in found.text


def test_kernels_that_lose_more_than_rounding_are_seen(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = BACKENDS["sdpa"].attend

    def coarse(query: Any, key: Any, value: Any, rules: Rules) -> Any:
        if value.dtype == torch.bfloat16:
            value = value.to(torch.float8_e4m3fn).to(torch.bfloat16)
        return exact(query, key, value, rules)

    monkeypatch.setitem(BACKENDS, "sdpa", BACKENDS["sdpa"]._replace(attend=coarse))
    found = findings(llama)
    assert found["attention, packed rows"].passed
    assert found["attention, bfloat16"].passed is False
    assert "backend sdpa is" in found["attention, bfloat16"].text


def test_dropout_is_named(tmp_path: Path) -> None:
    config = CASES["llama"][0]()
    config.attention_dropout = 0.1
    found = findings(made(config, tmp_path))
    assert found["dropout"].passed is False
    assert "set attention_dropout to 0 in config.json" in found["dropout"].text


def test_a_weight_without_a_gradient_is_named(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = modeling_llama.LlamaMLP.forward

    def detached(self: Any, hidden: Any) -> Any:
        return own(self, hidden).detach()

    monkeypatch.setattr("longred.training.handshake.fuse", lambda model: None)
    monkeypatch.setattr("longred.training.handshake.hold_no_copies", lambda model: None)
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", detached)
    found = findings(llama)["gradients"]
    assert found.passed is False
    assert "parameters get no gradient, first model.layers.0.mlp" in found.text


def test_a_layer_that_does_not_rotate_is_seen(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        modeling_llama, "apply_rotary_pos_emb", lambda query, key, cos, sin: (query, key)
    )
    found = findings(llama)["RoPE"]
    assert found.passed is False
    assert "layers [] rotate queries; by the configuration, [0, 1] should" in found.text


def test_a_crash_is_a_finding(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("The size of tensor a (8) must match\nmore")

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", broken)
    found = findings(llama)
    assert found["own code"] == Finding(
        "own code", "crashes: RuntimeError: The size of tensor a (8) must match", False
    )
    assert list(found) == ["own code"]


def tiny(kind: type[Any], **settings: Any) -> Any:
    shape = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": ORIGINAL,
        "pad_token_id": 0,
    }
    return kind(**{**shape, **settings})


def test_linear_attention_is_named(tmp_path: Path) -> None:
    config = tiny(MiniMaxConfig, head_dim=8, num_local_experts=2)
    assert "linear_attention" in config.layer_types
    found = findings(made(config, tmp_path))
    assert list(found) == ["own code"]
    assert "decoder layer 1 computes something else than softmax" in found["own code"].text


def test_attention_that_stays_the_models_own_is_named(tmp_path: Path) -> None:
    found = findings(made(tiny(StableLmConfig, attention_dropout=0.0), tmp_path))
    for rows in ("ordinary", "skipped", "packed"):
        assert found[f"attention, {rows} rows"].passed is False
        assert "2 of 2 layers do not call" in found[f"attention, {rows} rows"].text


def test_files_that_only_one_process_can_read_are_named(tmp_path: Path) -> None:
    folder = made(tiny(AriaTextConfig, moe_num_experts=2, moe_num_shared_experts=1), tmp_path)
    found = findings(folder)
    one = found.pop("weights of several processes")
    assert one.passed is None
    assert one.text.startswith("train this model in one process; several cannot read its files: ")
    assert "experts.gate_up_proj is missing" in one.text
    assert all(each.passed for each in found.values())


def test_rope_that_an_export_loses_is_named(tmp_path: Path) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = tiny(MellumConfig, head_dim=8, **experts)
    found = findings(made(config, tmp_path))["export"]
    assert found.passed is False
    assert found.text.startswith("loses the RoPE of each kind of layer")


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj.bias", "model.extra"])
def test_weights_that_the_first_layers_do_not_have_are_refused(llama: Path, name: str) -> None:
    weights = load_file(llama / "model.safetensors")
    save_file({**weights, name: torch.zeros(3)}, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(MismatchError, match=rf"1 differences, first {name} is unknown"):
        findings(llama)


def test_weights_of_another_shape_are_refused(llama: Path) -> None:
    weights = load_file(llama / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(3)
    save_file(weights, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(MismatchError, match=r"model.norm.weight has shape \(3,\) instead of"):
        findings(llama)


def test_a_damaged_file_is_refused(llama: Path) -> None:
    (llama / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(PreflightError, match="weights cannot be read"):
        findings(llama)


def test_layers_that_do_not_fit_the_memory_are_not_compared(
    llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(llama)
    num_weights = sum(
        weight.numel()
        for name, weight in load_file(llama / "model.safetensors").items()
        if "layers.2." not in name
    )
    assert bytes_needed(shortened(config, 2), CPU) == 12 * num_weights
    monkeypatch.setattr("longred.training.handshake.memory_of", lambda device: 1000.0)
    (found,) = findings(llama).values()
    assert found.part == MEMORY
    assert found.passed is None
    extended = extend_config(config, method="abf", target_window=TARGET)
    require(llama, extended, device=CPU)
    assert "was not compared with the model's own code" in caplog.text


def test_gradients_are_compared_and_freed_one_by_one() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    x = torch.randn(5, 6)
    exact = x.double().T @ torch.ones(5, 4).double()
    own = {"weight": (exact.T * 1.25).float(), "bias": torch.full((4,), 5.0)}
    with compared_gradients(layer, own) as found:
        layer(x).sum().backward()
        assert layer.weight.grad is None
        assert layer.bias.grad is None
    assert found == {"weight": pytest.approx(0.2, rel=1e-5), "bias": 0.0}
    layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_attention_sinks_are_refused(tmp_path: Path) -> None:
    shape = {**CASES["llama"][0]().to_dict(), "head_dim": 8, "num_local_experts": 4}
    keep = [
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
        *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
        "num_local_experts",
    ]
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = GptOssConfig(**{key: shape[key] for key in keep}, rope_parameters=rope)
    found = findings(made(config, tmp_path))
    assert "does not compute attention sinks" in found["attention, ordinary rows"].text


def test_a_model_of_other_parts_is_refused(tmp_path: Path) -> None:
    class Parts(nn.Module):
        pass

    from longred.models.architectures import refuse_other_parts

    model: Any = Parts()
    model.base_model = Parts()
    with pytest.raises(ConfigError, match="architecture Other has no part embed_tokens"):
        refuse_other_parts(model, "Other")


def test_a_model_in_which_no_full_layer_rotates_has_nothing_to_extend() -> None:
    shape = {**LlamaConfig().to_dict(), "num_hidden_layers": 4}
    keep = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    config = Exaone4Config(
        **{key: shape[key] for key in keep}, sliding_window=24, max_position_embeddings=64
    )
    with pytest.raises(ConfigError, match="there is nothing to extend"):
        extend_config(config, method="abf", target_window=256)


def test_training_refuses_by_the_first_finding(llama: Path, tmp_path: Path) -> None:
    write_extension(
        llama,
        tmp_path / "student",
        digest="0",
        method="abf",
        original_window=ORIGINAL,
        target_window=TARGET,
    )
    require(llama, load_config(tmp_path / "student"), device=CPU)
    file = llama / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "attention_dropout": 0.5}))
    with pytest.raises(
        PreflightError, match=r"cannot be trained exactly: dropout: .*`longred check"
    ):
        require(llama, load_config(tmp_path / "student"), device=CPU)


@pytest.mark.parametrize("method", ["drope", "cope", "abf"])
def test_a_student_stands_for_its_original_where_no_teacher_is_needed(
    method: str, llama: Path, tmp_path: Path
) -> None:
    student = tmp_path / "student"
    windows = {"original_window": ORIGINAL, "target_window": TARGET}
    write_extension(llama, student, digest="0", method=method, **windows)
    require(student, load_config(student), device=CPU)


@pytest.mark.parametrize(
    ("case", "needed"),
    [("llama", 2), ("gemma3", 3), ("smollm3", 3), ("deepseek-v3", 2), ("olmo3", 3)],
)
def test_the_first_layers_hold_every_kind(case: str, needed: int) -> None:
    config = CASES[case][0]()
    assert num_first_layers(config) == needed
    short = shortened(config, 2)
    assert short.num_hidden_layers == 2
    types = getattr(short, "layer_types", None)
    assert types is None or len(types) == 2
    assert config.num_hidden_layers == 3
