import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from longred.errors import ConfigError, PreflightError
from longred.method.rope import ROPE_METHODS
from longred.models.extension import (
    extend_config,
    frequencies,
    usable_methods,
    write_extension,
)
from longred.models.folder import write_config

Expected = tuple[list[float], float]
"""Angle per position of every pair of dimensions, and the attention factor."""


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
}


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


def plain(theta: float = 1e4, dim: int = 16) -> list[float]:
    return [theta ** (-2 * i / dim) for i in range(dim // 2)]


def yarn(
    theta: float, factor: float, original: int, dim: int, fast: float, slow: float
) -> Expected:
    """arXiv 2309.00071: equations 17 to 22, with the ramp's ends rounded to whole dimensions."""

    def pair_with(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(pair_with(fast)), 0), min(math.ceil(pair_with(slow)), dim - 1)
    result = []
    for i, f in enumerate(plain(theta, dim)):
        interpolated = min(max((i - low) / (high - low), 0.0), 1.0)
        result.append(f / factor * interpolated + f * (1 - interpolated))
    return result, 0.1 * math.log(factor) + 1


def llama3(
    theta: float, factor: float, original: int, dim: int, low: float = 1, high: float = 4
) -> Expected:
    """Llama 3.1: scale each frequency by its wavelength relative to the original window."""
    result = []
    for f in plain(theta, dim):
        wavelength = 2 * math.pi / f
        if wavelength < original / high:
            result.append(f)
        elif wavelength > original / low:
            result.append(f / factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            result.append((1 - smooth) * f / factor + smooth * f)
    return result, 1.0


LONG_FACTORS = [1.0, 1.1, 1.3, 1.7, 2.2, 3.0, 3.8, 4.5]
NTK = [4 ** (2 * i / 14) for i in range(8)]
METHOD_CASES: dict[str, tuple[str, dict[str, Any], Expected]] = {
    "abf": ("abf", {"rope_theta": 2e7}, (plain(2e7), 1.0)),
    "abf-computed": ("abf", {}, (plain(1e4 * 4**2), 1.0)),
    "pi": ("pi", {}, ([f / 4 for f in plain()], 1.0)),
    "ntk": ("ntk", {}, (plain(1e4 * 4 ** (16 / 14)), 1.0)),
    "yarn": ("yarn", {}, yarn(1e4, 4, 256, 16, 32, 1)),
    "yarn-betas": ("yarn", {"beta_fast": 8.0, "beta_slow": 2.0}, yarn(1e4, 4, 256, 16, 8, 2)),
    "llama3": ("llama3", {}, llama3(1e4, 4, 256, 16)),
    "llama3-factors": (
        "llama3",
        {"low_freq_factor": 2.0, "high_freq_factor": 8.0},
        llama3(1e4, 4, 256, 16, 2, 8),
    ),
    "longrope": (
        "longrope",
        {"long_factor": LONG_FACTORS},
        (
            [f / x for f, x in zip(plain(), LONG_FACTORS, strict=True)],
            math.sqrt(1 + math.log(4) / math.log(256)),
        ),
    ),
    "longrope-computed": (
        "longrope",
        {},
        (
            [f / x for f, x in zip(plain(), NTK, strict=True)],
            math.sqrt(1 + math.log(4) / math.log(256)),
        ),
    ),
}


def clipped(theta: float, num_clipped: int) -> list[float]:
    """arXiv 2602.05258: the slowest pairs times a cosine that falls from 1 to 0."""
    mask = 0.5 * (1 + np.cos(np.linspace(0, np.pi, num_clipped)))
    kept = plain(theta)
    kept[-num_clipped:] = (kept[-num_clipped:] * mask).tolist()
    return kept


METHOD_CASES |= {
    "longrope-mixed": (
        "longrope",
        {"short_factor": "original"},
        ([f / x for f, x in zip(plain(), NTK, strict=True)], 1.0),
    ),
    "longrope-mixed-factors": (
        "longrope",
        {"short_factor": "original", "long_factor": LONG_FACTORS},
        ([f / x for f, x in zip(plain(), LONG_FACTORS, strict=True)], 1.0),
    ),
    # Periods of 6, 20, 63, 199, 628, … tokens: four do not turn once within 256.
    "cope": ("cope", {}, (clipped(1e4, 4), 1.0)),
    "cope-theta": ("cope", {"rope_theta": 1e7}, (clipped(1e7, 4), 1.0)),
    "cope-number": ("cope", {"rope_theta": 1e7, "num_clipped": 7}, (clipped(1e7, 7), 1.0)),
    "drope": ("drope", {}, ([0.0] * 8, 1.0)),
}


def assert_turns(config: PreTrainedConfig, expected: Expected) -> None:
    """Check the frequencies of the model's own rotary embedding, and ours, against the formula."""
    inv_freq, attention_factor = (torch.tensor(expected[0], dtype=torch.float64), expected[1])
    rotary = LlamaRotaryEmbedding(copy.deepcopy(config))
    rotary(torch.zeros(1, 1), torch.tensor([[config.max_position_embeddings - 1]]))
    # A pair that stands still turns by less than any position could show.
    torch.testing.assert_close(rotary.inv_freq.double(), inv_freq, rtol=1e-6, atol=1e-27)
    assert rotary.attention_scaling == pytest.approx(attention_factor, rel=1e-12)
    ours = frequencies(config)
    assert torch.equal(ours.inv_freq, rotary.inv_freq)
    assert ours.attention_factor == rotary.attention_scaling


@pytest.mark.parametrize("case", METHOD_CASES)
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config])
def test_methods_turn_as_their_formulas_after_a_round_trip(
    case: str, kind: type[PreTrainedConfig], tmp_path: Path
) -> None:
    method, settings, expected = METHOD_CASES[case]
    before = kind(**{k: v for k, v in config().to_dict().items() if k != "model_type"})
    kept = copy.deepcopy(before.to_dict())
    after = extend_config(before, method=method, target_window=1024, **settings)
    assert before.to_dict() == kept
    changed = {key for key, value in after.to_dict().items() if value != kept.get(key)}
    assert changed == {"rope_parameters", "max_position_embeddings"}
    assert_turns(after, expected)
    after.save_pretrained(tmp_path / "new")
    (tmp_path / "both").mkdir()
    write_config(after, tmp_path / "both")
    for folder in ("new", "both"):
        loaded = AutoConfig.from_pretrained(tmp_path / folder)
        assert loaded.rope_parameters == after.rope_parameters
        assert loaded.max_position_embeddings == 1024
        assert_turns(loaded, expected)


def test_every_method_is_tested() -> None:
    assert {method for method, _, _ in METHOD_CASES.values()} == set(ROPE_METHODS)


def test_pi_takes_the_original_window_that_is_given() -> None:
    narrow = extend_config(config(), method="pi", target_window=1024, original_window=128)
    assert narrow.rope_parameters["factor"] == 8.0


LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("rope", "method", "settings", "expected"),
    [
        (LLAMA31, "llama3", {}, llama3(5e5, 32, 32, 16)),
        (LLAMA31, "abf", {"rope_theta": 4e6}, llama3(4e6, 8, 32, 16)),
        (LLAMA31, "abf", {}, llama3(5e5 * 4**2, 8, 32, 16)),
        (
            {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
            "pi",
            {},
            ([f / 8 for f in plain()], 1.0),
        ),
        (
            {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 2.0,
                "original_max_position_embeddings": 128,
            },
            "yarn",
            {},
            yarn(1e4, 8, 128, 16, 32, 1),
        ),
    ],
)
def test_rescaled_models_are_rescaled_further_where_that_is_defined(
    rope: dict[str, Any], method: str, settings: dict[str, Any], expected: Expected
) -> None:
    # The factor is 4, relative to the model's own window of 256, whatever original_window says.
    before = config(rope_parameters=dict(rope))
    for window in (256, 64):
        after = extend_config(
            before, method=method, target_window=1024, original_window=window, **settings
        )
        assert_turns(after, expected)


@pytest.mark.parametrize(
    ("rope", "method", "message"),
    [
        (LLAMA31, "yarn", r"rope_type llama3.*yarn is not defined.*use abf or llama3, or start"),
        (LLAMA31, "ntk", "use abf or llama3"),
        (
            {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "mscale": 0.7,
            },
            "yarn",
            "yarn RoPE sets mscale",
        ),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "abf", "rope_type dynamic"),
    ],
)
def test_rescaled_models_are_refused_elsewhere(
    rope: dict[str, Any], method: str, message: str
) -> None:
    settings = {"rope_theta": 1e9} if method == "abf" else {}
    with pytest.raises(ConfigError, match=message):
        extend_config(
            config(rope_parameters=dict(rope)), method=method, target_window=1024, **settings
        )


def gemma3() -> PreTrainedConfig:
    return Gemma3TextConfig(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=3,
        intermediate_size=96,
        head_dim=16,
        max_position_embeddings=256,
        sliding_window=16,
        sliding_window_pattern=3,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )


@pytest.mark.parametrize("method", ROPE_METHODS)
def test_gemma3_is_rescaled_where_it_sees_the_whole_window(method: str, tmp_path: Path) -> None:
    settings = {"rope_theta": 8e6} if method == "abf" else {}
    after = extend_config(gemma3(), method=method, target_window=1024, **settings)
    assert after.rope_parameters["sliding_attention"] == {"rope_type": "default", "rope_theta": 1e4}
    theta = {"abf": 8e6, "ntk": 1e6 * 4 ** (16 / 14)}.get(method, 1e6)
    expected = {
        "pi": ([f / 4 for f in plain(1e6)], 1.0),
        "yarn": yarn(1e6, 4, 256, 16, 32, 1),
        "llama3": llama3(1e6, 4, 256, 16),
        "longrope": ([f / x for f, x in zip(plain(1e6), NTK, strict=True)], None),
        "cope": (clipped(1e6, 5), 1.0),
        "drope": ([0.0] * 8, 1.0),
    }.get(method, (plain(theta), 1.0))
    write_config(after, tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.rope_parameters == after.rope_parameters
    rotary = Gemma3RotaryEmbedding(loaded)
    torch.testing.assert_close(
        rotary.full_attention_inv_freq.double(),
        torch.tensor(expected[0], dtype=torch.float64),
        rtol=1e-6,
        atol=1e-27,
    )
    assert torch.equal(frequencies(after).inv_freq, rotary.full_attention_inv_freq)
    sliding = torch.tensor(plain(1e4), dtype=torch.float64)
    torch.testing.assert_close(
        rotary.sliding_attention_inv_freq.double(), sliding, rtol=1e-6, atol=0
    )
    assert torch.equal(
        frequencies(after, "sliding_attention").inv_freq, rotary.sliding_attention_inv_freq
    )
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["rope_theta"] == after.rope_parameters["full_attention"]["rope_theta"]
    assert values["rope_local_base_freq"] == 1e4


def phi3(**changes: Any) -> PreTrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    values = {
        **shape,
        "pad_token_id": 0,
        "max_position_embeddings": 256,
        "original_max_position_embeddings": 256,
        "rope_parameters": rope,
    }
    return Phi3Config(**{**values, **changes})


@pytest.mark.parametrize("method", ["abf", "ntk", "longrope", "cope"])
def test_phi3_turns_a_part_of_the_head(method: str, tmp_path: Path) -> None:
    settings = {"rope_theta": 1e6} if method == "abf" else {}
    after = extend_config(phi3(), method=method, target_window=1024, **settings)
    theta = {"abf": 1e6, "ntk": 1e4 * 4 ** (8 / 6)}.get(method, 1e4)
    scale = [4 ** (2 * i / 6) if method == "longrope" else 1.0 for i in range(4)]
    expected = [f / x for f, x in zip(plain(theta, 8), scale, strict=True)]
    if method == "cope":
        # Two pairs are damped, the first by nothing.
        expected[-1] = 0.0
    write_config(after, tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    for each in (after, loaded):
        rotary = Phi3RotaryEmbedding(copy.deepcopy(each))
        for position in (10, 1000):
            # Short and long texts use equal frequencies, although longrope stores two sets.
            rotary(torch.zeros(1, 1), torch.tensor([[position]]))
            got = rotary.inv_freq.double()
            torch.testing.assert_close(
                got, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-27
            )
        assert torch.equal(frequencies(each).inv_freq, rotary.inv_freq)
        assert frequencies(each).attention_factor == rotary.attention_scaling
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["partial_rotary_factor"] == 0.5
    # Without sharper attention Phi-3 must read a window that has not grown.
    assert values["original_max_position_embeddings"] == (1024 if method == "cope" else 256)
    if method in ("longrope", "cope"):
        assert set(values["rope_scaling"]) == {"type", "short_factor", "long_factor"}
    write_config(loaded, tmp_path)
    again = json.loads((tmp_path / "config.json").read_text())
    assert "type" not in again["rope_parameters"]
    assert again["rope_scaling"] == values["rope_scaling"]


def test_phi3_longrope_goes_further_with_factors_that_are_given() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5, **factors}
    before = phi3(rope_parameters=rope, original_max_position_embeddings=64)
    with pytest.raises(ConfigError, match=r"extension\.long_factor: .* longrope already"):
        extend_config(before, method="longrope", target_window=1024)
    with pytest.raises(ConfigError, match="must hold 4 positive numbers"):
        extend_config(before, method="longrope", target_window=1024, long_factor=[1.0] * 3)
    after = extend_config(before, method="longrope", target_window=1024, long_factor=[4.0] * 4)
    rotary = Phi3RotaryEmbedding(after)
    assert rotary.attention_scaling == pytest.approx(math.sqrt(1 + math.log(16) / math.log(64)))
    with pytest.raises(ConfigError, match="use longrope, or start"):
        extend_config(before, method="abf", target_window=1024, rope_theta=1e6)


def test_phi3_refuses_what_transformers_does_not_read_for_it() -> None:
    for method in ("pi", "yarn", "llama3", "drope"):
        with pytest.raises(ConfigError, match="Phi-3 does not read; use abf, ntk, longrope or cop"):
            extend_config(phi3(), method=method, target_window=1024)
    with pytest.raises(ConfigError, match=r"extension\.short_factor: Phi-3's attention factor"):
        extend_config(phi3(), method="longrope", short_factor="original", target_window=1024)


def test_version_4_reads_olmo2_in_its_older_form(tmp_path: Path) -> None:
    values = {k: v for k, v in config().to_dict().items() if k != "model_type"}
    after = extend_config(Olmo2Config(**values), method="pi", target_window=1024)
    write_config(after, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_scaling"] == {"type": "linear", "factor": 4.0}
    assert written["rope_parameters"] == after.rope_parameters
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert torch.equal(frequencies(loaded).inv_freq, frequencies(after).inv_freq)
    write_config(loaded, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == written


@pytest.mark.parametrize(
    ("make", "usable"),
    [
        (config, list(ROPE_METHODS)),
        (lambda: config(rope_parameters=LONGROPE), ["longrope"]),
        (lambda: Olmo2Config(max_position_embeddings=256), ["abf", "pi", "ntk"]),
        (
            lambda: Olmo3Config(max_position_embeddings=256),
            ["pi", "yarn", "llama3", "longrope", "cope", "drope"],
        ),
    ],
)
def test_methods_that_need_no_settings(make: Any, usable: list[str]) -> None:
    """`longred check` and `longred init` take the first of them."""
    assert usable_methods(make(), 1024) == usable


def test_version_4_reads_experts_under_their_older_name(tmp_path: Path) -> None:
    write_config(Qwen3MoeConfig(num_experts=6), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["num_experts"] == values["num_local_experts"] == 6


@pytest.mark.parametrize("method", ["yarn", "llama3", "longrope"])
def test_a_head_dim_that_is_left_out_is_computed(method: str) -> None:
    values = {k: v for k, v in config().to_dict().items() if k not in ("model_type", "head_dim")}
    before = MixtralConfig(**values)
    assert before.head_dim is None
    after = extend_config(before, method=method, target_window=1024)
    of_llama = extend_config(config(), method=method, target_window=1024)
    assert torch.equal(frequencies(after).inv_freq, frequencies(of_llama).inv_freq)
    assert before.head_dim is None


def test_version_4_has_no_words_for_rescaled_sliding_layers(tmp_path: Path) -> None:
    before = gemma3()
    before.rope_parameters["sliding_attention"] = {
        "rope_type": "linear",
        "rope_theta": 1e4,
        "factor": 2.0,
    }
    with pytest.raises(ConfigError, match="sliding layers' RoPE is of type linear"):
        write_config(before, tmp_path)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"method": "yarm"}, r"extension\.method: 'yarm' is not one of abf, pi"),
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
            {"method": "ntk"},
            r"already rescaled \(rope_type linear\)",
        ),
        ({}, {"method": "dynamic"}, r"extension\.method: dynamic takes its frequencies from"),
        (
            {},
            {"method": "yarn", "target_window": 1003, "original_window": 100},
            "not exactly 100 x",
        ),
        ({}, {"method": "yarn", "beta_fast": 1.0}, r"extension\.beta_fast: must be larger"),
        ({}, {"method": "llama3", "high_freq_factor": 1.0}, r"extension\.high_freq_factor"),
        (
            {},
            {"method": "cope", "num_clipped": 1},
            r"extension\.num_clipped: must be from 2.*got 1; 4",
        ),
        ({}, {"method": "cope", "num_clipped": 9}, r"num_clipped: .* 8 pairs .* got 9"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}},
            {"method": "cope"},
            r"num_clipped: .* got 0; 0 of them do not turn once within 256",
        ),
        ({}, {"method": "cope", "rope_theta": 9e3}, r"rope_theta: 9000 is below the model's own"),
        ({}, {"method": "pi", "num_clipped": 4}, r"num_clipped: method pi does not use it"),
        ({}, {"method": "drope", "rope_theta": 1e6}, r"rope_theta: method drope does not use it"),
        (
            {},
            {"method": "longrope", "short_factor": "all"},
            r"extension\.short_factor: must be original or null, got 'all'",
        ),
        (
            {"rope_parameters": LONGROPE},
            {"method": "longrope", "short_factor": "original", "long_factor": [2.0] * 8},
            r"extension\.short_factor: the model's RoPE is already rescaled \(longrope\)",
        ),
        ({}, {"method": "longrope", "long_factor": [1.0] * 7}, "must hold 8 positive numbers"),
        ({}, {"method": "longrope", "long_factor": [1.0] * 7 + [-1.0]}, "must hold 8 positive"),
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
    pairs = zip(plain(1e6), plain(1e4), strict=True)
    expected = [0.25] * 8 if method == "pi" else [after / before for after, before in pairs]
    torch.testing.assert_close(ratio, torch.tensor(expected).double(), rtol=1e-5, atol=0)
    assert facts["extended_layers"] == [0, 1, 2]
    assert facts["attention_factor_before"] == facts["attention_factor_after"] == 1.0
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
