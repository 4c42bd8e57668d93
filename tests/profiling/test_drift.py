import itertools
import json
from collections import OrderedDict
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from longred.attention import function as attention
from longred.errors import ConfigError, MismatchError, NonFiniteLossError
from longred.models.extension import write_extension
from longred.models.load import hidden_states, load_model
from longred.profiling.drift import (
    Drift,
    position_starts,
    profile_drift,
    start_beyond,
    write_parquet,
)


@pytest.fixture(scope="module")
def models(
    tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("extension")
    write_extension(
        tiny_model_folder,
        folder,
        digest="",
        method="abf",
        original_window=64,
        target_window=256,
        rope_theta=1e6,
    )
    teacher, student = load_model(tiny_model_folder), load_model(folder)
    with torch.no_grad():
        for model in (teacher, student):
            for layer in model.base_model.layers:
                layer.self_attn.q_proj.weight.mul_(30)
    return teacher, student


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 400, (5, 33))


BINS = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 33]


def eager_attention(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, ...]:
    model.set_attn_implementation("eager")
    try:
        mask = torch.full((33, 33), float("-inf")).triu(1)[None, None]
        with torch.no_grad():
            result = model(tokens, attention_mask=mask, output_attentions=True)
    finally:
        model.set_attn_implementation(attention.ATTENTION_NAME)
    return tuple(result.attentions)


def test_drift_equals_dense_measurements_of_whole_forwards(
    models: tuple[PreTrainedModel, PreTrainedModel], tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, student = models
    seen: list[tuple[int, int, str]] = []
    drift = profile_drift(
        teacher, student, tokens, batch_rows=2, on_progress=lambda *a: seen.append(a)
    )
    assert [item[:2] for item in seen] == [(2, 5), (4, 5), (5, 5)]
    assert (drift.num_layers, drift.num_heads, drift.num_tokens) == (3, 4, 165)
    assert drift.position_starts == BINS[:-1]
    assert drift.position_tokens == [5 * (b - a) for a, b in itertools.pairwise(BINS)]
    for model in models:
        hooks = model.base_model._forward_pre_hooks
        monkeypatch.setattr(model.base_model, "_forward_pre_hooks", type(hooks)())
    laws = zip(eager_attention(teacher, tokens), eager_attention(student, tokens), strict=True)
    for layer, (p, q) in enumerate(laws):
        p, q = p.double(), q.double()
        kl = torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(-1)
        expected = kl.mean(dim=(0, 2))
        assert drift.attention_kl_std[layer] == pytest.approx(
            kl.std(unbiased=False).item(), rel=1e-4
        )
        spread = torch.tensor(drift.attention_kl_per_head_std[layer], dtype=torch.float64)
        torch.testing.assert_close(spread, kl.std(dim=(0, 2), unbiased=False), atol=2e-6, rtol=1e-4)
        by_position = [kl[:, :, a:b].mean().item() for a, b in itertools.pairwise(BINS)]
        assert drift.attention_kl_by_position[layer] == pytest.approx(
            by_position, rel=1e-4, abs=2e-6
        )
        got = torch.tensor(drift.attention_kl_per_head[layer], dtype=torch.float64)
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-4)
        assert drift.attention_kl[layer] == pytest.approx(got.mean().item(), rel=1e-9)
    assert drift.attention_kl[0] > 1e-4
    with torch.no_grad():
        pairs = [hidden_states(m, tokens, layers=[1, 2, 3]) for m in models]
    for index in (1, 2, 3):
        ours, theirs = (states[index].double() for states in pairs)
        cosine = (ours * theirs).sum(-1) / (ours.norm(dim=-1) * theirs.norm(dim=-1))
        assert drift.hidden_similarity[index - 1] == pytest.approx(cosine.mean().item(), abs=1e-6)
        by_position = [cosine[:, a:b].mean().item() for a, b in itertools.pairwise(BINS)]
        assert drift.hidden_similarity_by_position[index - 1] == pytest.approx(
            by_position, abs=1e-6
        )
        spread = cosine.std(unbiased=False).item()
        assert drift.hidden_similarity_std[index - 1] == pytest.approx(spread, abs=1e-5)


def test_batches_and_reruns_do_not_matter(
    models: tuple[PreTrainedModel, PreTrainedModel], tokens: Tensor
) -> None:
    one, all_rows = (profile_drift(*models, tokens, batch_rows=rows) for rows in (1, 5))
    assert one.attention_kl == pytest.approx(all_rows.attention_kl, rel=1e-4)
    assert one.hidden_similarity == pytest.approx(all_rows.hidden_similarity, abs=1e-6)
    assert profile_drift(*models, tokens, batch_rows=5) == all_rows


def test_a_model_does_not_drift_from_itself(
    models: tuple[PreTrainedModel, PreTrainedModel], tokens: Tensor
) -> None:
    drift = profile_drift(models[0], models[0], tokens, batch_rows=5)
    assert drift.attention_kl == [0.0] * 3
    assert drift.hidden_similarity == pytest.approx([1.0] * 3, abs=1e-6)


def test_mixed_windows_are_read_beyond_the_original_one(
    models: tuple[PreTrainedModel, PreTrainedModel],
    tokens: Tensor,
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher, windows = models[0], {"original_window": 64, "target_window": 256}
    settings = {"method": "longrope", "short_factor": "original"}
    write_extension(tiny_model_folder, tmp_path, digest="", **windows, **settings)
    student = load_model(tmp_path)
    with torch.no_grad():
        for layer in student.base_model.layers:
            layer.self_attn.q_proj.weight.mul_(30)
    inside = profile_drift(teacher, student, tokens, batch_rows=2)
    assert inside.attention_kl == [0.0] * 3
    assert (start_beyond(student.config, 33), start_beyond(teacher.config, 33)) == (223, 0)
    drift = profile_drift(teacher, student, tokens, batch_rows=2, student_start=223)
    assert drift.student_start == 223
    assert Drift.from_json(json.loads(json.dumps(drift.to_json()))) == drift
    # Attention by the dense formula, with the long factors written into a plain RoPE.
    reference = load_model(tiny_model_folder)
    reference.load_state_dict(student.state_dict())
    rotary = reference.base_model.rotary_emb
    pairs = len(rotary.inv_freq)
    factors = 4.0 ** (torch.arange(pairs, dtype=torch.float64) / (pairs - 1))
    rotary.inv_freq = (rotary.inv_freq.double() / factors).float()
    monkeypatch.setattr(teacher.base_model, "_forward_pre_hooks", OrderedDict())
    monkeypatch.setattr(reference.base_model, "_forward_pre_hooks", OrderedDict())
    laws = zip(eager_attention(teacher, tokens), eager_attention(reference, tokens), strict=True)
    for layer, (p, q) in enumerate(laws):
        p, q = p.double(), q.double()
        kl = torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(-1)
        assert drift.attention_kl[layer] == pytest.approx(kl.mean().item(), rel=1e-3, abs=2e-6)
    assert drift.attention_kl[0] > 1e-4


def test_drift_is_plain_json(
    models: tuple[PreTrainedModel, PreTrainedModel], tokens: Tensor
) -> None:
    drift = profile_drift(*models, tokens[:1], batch_rows=1)
    values = json.loads(json.dumps(drift.to_json(), allow_nan=False))
    assert len(values["attention_kl_per_head"]) == 3
    assert len(values["attention_kl_per_head"][0]) == 4
    assert Drift.from_json(values) == drift
    with pytest.raises(MismatchError, match="format_version is 1"):
        Drift.from_json({**values, "format_version": 1})


def test_the_table_holds_every_cell(
    models: tuple[PreTrainedModel, PreTrainedModel], tokens: Tensor, tmp_path: Path
) -> None:
    drift = profile_drift(*models, tokens, batch_rows=5)
    write_parquet(drift, tmp_path / "drift.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "drift.parquet")
    assert table.schema.metadata[b"format_version"] == b"2"
    rows = table.to_pylist()
    assert len(rows) == 3 * (4 + 1) * 11
    for head in range(4):
        cells = [r for r in rows if r["layer"] == 1 and r["head"] == head]
        assert [(r["position_start"], r["position_end"]) for r in cells] == list(
            itertools.pairwise(BINS)
        )
        mean = sum(r["mean"] * r["num_tokens"] for r in cells) / 165
        assert mean == pytest.approx(drift.attention_kl_per_head[1][head], rel=1e-12)
    hidden = [r for r in rows if r["measure"] == "hidden_similarity" and r["layer"] == 2]
    assert [r["mean"] for r in hidden] == drift.hidden_similarity_by_position[2]
    assert {r["head"] for r in hidden} == {None}


@pytest.mark.parametrize("length", [1, 2, 3, 128, 1000])
def test_bins_cover_all_positions_once(length: int) -> None:
    starts = position_starts(length)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] < length
    assert all(b <= max(1.5 * a, a + 1) for a, b in itertools.pairwise([*starts, length]))


def test_models_that_cannot_be_compared(
    models: tuple[PreTrainedModel, PreTrainedModel], tokens: Tensor, tiny_model_folder: Path
) -> None:
    sdpa = load_model(tiny_model_folder, attention="sdpa")
    with pytest.raises(ValueError, match="attention='longred'"):
        profile_drift(models[0], sdpa, tokens, batch_rows=1)
    other = load_model(tiny_model_folder)
    other.config.num_key_value_heads = 1
    with pytest.raises(ConfigError, match="differ in num_key_value_heads"):
        profile_drift(models[0], other, tokens, batch_rows=1)
    with pytest.raises(ValueError, match="rows of tokens"):
        profile_drift(*models, tokens[:0], batch_rows=1)


def test_weights_that_are_not_finite_are_named_by_layer(
    tiny_model_folder: Path, models: tuple[PreTrainedModel, PreTrainedModel], tokens: Tensor
) -> None:
    broken = load_model(tiny_model_folder)
    with torch.no_grad():
        broken.base_model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteLossError, match="decoder layer 1"):
        profile_drift(models[0], broken, tokens, batch_rows=2)
