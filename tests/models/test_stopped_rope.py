"""cope, drope and mixed windows: logits against a model whose RoPE is edited by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from longred.errors import ConfigError
from longred.models.extension import extend_config, write_extension
from longred.store.artifacts import read_json

THETA, DIM, WINDOW, TARGET = 1e4, 16, 64, 256
FAR = 10**7


def original() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=96,
        max_position_embeddings=WINDOW,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
    )


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def extended(**settings: Any) -> Any:
    return model_of(extend_config(original(), target_window=TARGET, **settings))


@torch.no_grad()
def logits(model: Any, num_tokens: int, start: int = 0, dtype: Any = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(100, (2, num_tokens), generator=generator)
    positions = start + torch.arange(num_tokens)[None]
    result: Tensor = model.to(dtype)(tokens, position_ids=positions).logits
    return result


def by_hand(inv_freq: np.ndarray) -> Any:
    """The original model with these angles per position."""
    model = model_of(original())
    model.model.rotary_emb.inv_freq = torch.tensor(inv_freq, dtype=torch.float32)
    return model


def frequencies(theta: float) -> np.ndarray:
    return theta ** -(np.arange(0, DIM, 2, dtype=np.float64) / DIM)


@pytest.mark.parametrize("num_tokens", [20, WINDOW, TARGET])
def test_cope_damps_the_slowest_pairs(num_tokens: int) -> None:
    student = extended(method="cope", rope_theta=1e6, num_clipped=7)
    inv_freq = frequencies(1e6)
    inv_freq[-7:] *= 0.5 * (1 + np.cos(np.linspace(0, np.pi, 7)))
    expected = logits(by_hand(inv_freq), num_tokens)
    torch.testing.assert_close(logits(student, num_tokens), expected, atol=2e-4, rtol=1e-4)
    undamped = logits(by_hand(frequencies(1e6)), num_tokens)
    assert (undamped - expected).abs().max() > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_drope_equals_the_model_without_rope(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {start: logits(extended(method="drope"), TARGET, start, dtype) for start in (0, FAR)}
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *_, **__: (q, k))
    expected = logits(model_of(original()), TARGET, dtype=dtype)
    for start in found:
        assert torch.equal(found[start], expected), start


def test_without_rope_only_order_under_the_mask_is_left() -> None:
    student = extended(method="drope")
    assert not torch.equal(logits(model_of(original()), TARGET), logits(student, TARGET))
    positions = torch.randperm(TARGET)[None]
    tokens = torch.randint(100, (1, TARGET))
    with torch.no_grad():
        ordinary, shuffled = student(tokens), student(tokens, position_ids=positions)
    assert torch.equal(ordinary.logits, shuffled.logits)


def test_mixed_windows_keep_the_original_inside_its_window() -> None:
    student, before = extended(method="longrope", short_factor="original"), model_of(original())
    for num_tokens in (1, 20, WINDOW):
        assert torch.equal(logits(student, num_tokens), logits(before, num_tokens))
    factors = (TARGET / WINDOW) ** (np.arange(0, DIM, 2) / (DIM - 2))
    beyond = by_hand(frequencies(THETA) / factors)
    for num_tokens, start in ((WINDOW + 1, 0), (TARGET, 0), (20, TARGET - 20)):
        got, expected = (logits(model, num_tokens, start) for model in (student, beyond))
        torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)
    # The way back: a short row after a long one.
    assert torch.equal(logits(student, 20), logits(before, 20))


def test_what_has_no_rope_is_not_extended_again() -> None:
    dropped = extend_config(original(), method="drope", target_window=TARGET)
    for method in ("abf", "llama3", "pi", "drope"):
        with pytest.raises(ConfigError, match=r"RoPE is switched off .* nothing to rescale"):
            extend_config(dropped, method=method, target_window=2 * TARGET)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "cope"}, "4 of 8 pairs of dimensions are damped, the slowest to a standstill"),
        ({"method": "drope"}, "RoPE is off: the student has no positions"),
        ({"method": "longrope"}, "turns by the long factors at every length"),
        (
            {"method": "longrope", "short_factor": "original"},
            "turns by the original RoPE up to 64 tokens and by the long factors in every row",
        ),
    ],
)
def test_the_extension_is_explained(
    settings: dict[str, Any], words: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    windows = {"original_window": WINDOW, "target_window": TARGET}
    write_extension(tiny_model_folder, tmp_path, digest="0", **windows, **settings)
    (note,) = read_json(tmp_path / "extension.json")["notes"]
    assert words in note
    written = read_json(tmp_path / "config.json")
    is_mixed = "short_factor" in settings
    # Version 4 switches at this window.
    assert written.get("original_max_position_embeddings") == (WINDOW if is_mixed else None)
