import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from longred.errors import ConfigError, PreflightError
from longred.extension import extend_config, inverse_frequencies, write_extension


def config(**changes: object) -> PreTrainedConfig:
    values = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    return LlamaConfig(**{**values, **changes})


def frequencies(theta: float, factor: float = 1.0) -> torch.Tensor:
    return torch.tensor([theta ** (-2 * i / 16) / factor for i in range(8)], dtype=torch.float64)


def test_abf_raises_theta_and_nothing_else() -> None:
    before = config()
    kept = copy.deepcopy(before.to_dict())
    after = extend_config(before, method="abf", target_window=1024, rope_theta=2e7)
    assert before.to_dict() == kept
    assert after.rope_parameters == {"rope_type": "default", "rope_theta": 2e7}
    assert after.max_position_embeddings == 1024
    changed = {key for key, value in after.to_dict().items() if value != kept.get(key)}
    assert changed == {"rope_parameters", "max_position_embeddings"}
    torch.testing.assert_close(
        LlamaRotaryEmbedding(after).inv_freq.double(), frequencies(2e7), rtol=1e-6, atol=0
    )


def test_pi_divides_positions_by_the_factor() -> None:
    after = extend_config(config(), method="pi", target_window=1024, rope_theta=None)
    assert after.rope_parameters == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    torch.testing.assert_close(
        LlamaRotaryEmbedding(after).inv_freq.double(), frequencies(1e4, 4.0), rtol=1e-6, atol=0
    )
    narrow = extend_config(config(), method="pi", target_window=1024, original_window=128)
    assert narrow.rope_parameters["factor"] == 8.0


@pytest.mark.parametrize(("method", "settings"), [("abf", {"rope_theta": 5e5}), ("pi", {})])
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config])
def test_frequencies_are_the_models_own_after_a_round_trip(
    method: str, settings: dict[str, float], kind: type[PreTrainedConfig], tmp_path: Path
) -> None:
    before = kind(**{k: v for k, v in config().to_dict().items() if k != "model_type"})
    after = extend_config(before, method=method, target_window=1024, **settings)
    after.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.rope_parameters == after.rope_parameters
    expected = LlamaRotaryEmbedding(after).inv_freq
    assert torch.equal(LlamaRotaryEmbedding(loaded).inv_freq, expected)
    assert torch.equal(inverse_frequencies(loaded), expected)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"method": "yarm"}, r"extension\.method: 'yarm' is not one of abf, pi"),
        ({}, {"method": "abf"}, r"extension\.rope_theta: method abf needs"),
        ({}, {"method": "abf", "rope_theta": 1e4}, r"extension\.rope_theta: 10000 does not raise"),
        ({}, {"method": "abf", "rope_theta": "2e7"}, r"extension\.rope_theta: must be a finite"),
        ({}, {"method": "abf", "rope_theta": float("nan")}, r"rope_theta: must be a finite"),
        ({}, {"method": "pi", "rope_theta": 2e7}, r"extension\.rope_theta: method pi does not use"),
        ({}, {"method": "pi", "beta": 2}, r"extension\.beta: method pi does not use"),
        ({}, {"method": "pi", "target_window": 256}, r"target_window: 256 must be larger"),
        ({}, {"method": "pi", "target_window": 1024.0}, r"target_window: must be a whole number"),
        ({}, {"method": "pi", "original_window": 512}, r"original_window: 512 exceeds"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            {"method": "pi"},
            r"already rescaled \(rope_type linear\)",
        ),
    ],
)
def test_bad_input_is_named(
    changes: dict[str, object], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        extend_config(config(**changes), **{"target_window": 1024, **arguments})


@pytest.mark.parametrize(("method", "theta"), [("abf", 1e6), ("pi", None)])
def test_written_extension(
    tiny_model_folder: Path, tmp_path: Path, method: str, theta: float | None
) -> None:
    folder = tmp_path / "extension"
    write_extension(
        tiny_model_folder,
        folder,
        digest="abc",
        method=method,
        original_window=64,
        target_window=256,
        rope_theta=theta,
    )
    values = json.loads((folder / "config.json").read_text())
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == (theta or 1e4)
    scaling = None if method == "abf" else {"rope_type": "linear", "factor": 4.0}
    assert values["rope_scaling"] == scaling
    assert values["max_position_embeddings"] == 256
    loaded = AutoConfig.from_pretrained(folder)
    assert loaded.rope_parameters == values["rope_parameters"]
    reference = json.loads((folder / "weights.json").read_text())
    assert reference == {"folder": str(tiny_model_folder.resolve()), "digest": "abc"}
    facts = json.loads((folder / "extension.json").read_text())
    assert (facts["method"], facts["original_window"], facts["target_window"]) == (method, 64, 256)
    assert facts["rope_theta_before"] == 1e4
    ratio = torch.tensor(facts["inv_freq_ratio_per_dim"], dtype=torch.float64)
    expected = torch.full((8,), 0.25) if method == "pi" else frequencies(1e6) / frequencies(1e4)
    torch.testing.assert_close(ratio, expected.double(), rtol=1e-5, atol=0)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 256
    assert (folder / "tokenizer.json").is_file()


def test_no_model_to_extend(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"config\.json: is missing"):
        write_extension(
            tmp_path / "none",
            tmp_path / "extension",
            digest="",
            method="pi",
            original_window=64,
            target_window=256,
        )
    assert not (tmp_path / "extension").exists()
