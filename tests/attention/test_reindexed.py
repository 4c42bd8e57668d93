"""SelfExtend and dual chunk attention against float64 attention that rotates after choosing."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from longred.attention.function import ATTENTION_NAME, guard, register
from longred.attention.reindexed import SCHEMES, dual_chunk, group_size, reindex, self_extend
from longred.evaluation.cache import Piece, RowCache
from longred.evaluation.runner import Runner

ORIGINAL, TARGET = 32, 128
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": ORIGINAL,
}


def relative_positions(name: str, num_tokens: int) -> list[list[int]]:
    """Return the distance at which token i sees token j ≤ i, by the papers' formulas."""
    near, size = group_size(ORIGINAL, TARGET)
    chunk, last = ORIGINAL * 3 // 4, ORIGINAL - 1
    table = [[0] * num_tokens for _ in range(num_tokens)]
    for i in range(num_tokens):
        for j in range(i + 1):
            chunks_back = i // chunk - j // chunk
            if name == "plain" or (name == "self-extend" and i - j < near):
                table[i][j] = i - j
            elif name == "self-extend":
                table[i][j] = i // size + near - near // size - j // size
            elif chunks_back == 0:
                table[i][j] = i % chunk - j % chunk
            elif chunks_back == 1:
                table[i][j] = min(chunk + i % chunk, last) - j % chunk
            else:
                table[i][j] = last - j % chunk
    return table


def reference_logits(model: Any, tokens: list[int], name: str) -> Tensor:
    """Return logits [T, V] in float64: unrotated queries and keys meet at chosen distances."""
    config, base = model.config, model.model.double()
    size = config.hidden_size // config.num_attention_heads
    inv_freq = [10000.0 ** (-2 * pair / size) for pair in range(size // 2)]
    distance_TT = torch.tensor(relative_positions(name, len(tokens)), dtype=torch.float64)
    x = base.embed_tokens.weight.double()[torch.tensor(tokens)]
    for layer in base.layers:
        attention = layer.self_attn
        hidden = layer.input_layernorm(x)
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        q, k, v = (p(hidden).view(len(tokens), -1, size) for p in projections)
        q = torch.complex(q[..., : size // 2], q[..., size // 2 :])
        k = torch.complex(k[..., : size // 2], k[..., size // 2 :])
        heads = []
        for head in range(config.num_attention_heads):
            shared = head // (config.num_attention_heads // config.num_key_value_heads)
            scores = torch.zeros_like(distance_TT)
            for pair, frequency in enumerate(inv_freq):
                turned = torch.polar(torch.ones_like(distance_TT), distance_TT * frequency)
                products = q[:, head, pair, None] * k[:, shared, pair].conj()[None]
                scores += (products * turned).real
            scores = scores / math.sqrt(size)
            future = torch.ones_like(scores, dtype=torch.bool).triu(1)
            heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v[:, shared])
        x = x + attention.o_proj(torch.cat(heads, dim=-1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head.double()(base.norm(x))


def build(kind: Any, config: Any, *, scale: float = 6.0) -> Any:
    """Return a random model with attention `longred`; large matrices make positions matter."""
    register()
    torch.manual_seed(0)
    config._attn_implementation = ATTENTION_NAME
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    guard(model)
    return model


def llama() -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    return build(LlamaForCausalLM, LlamaConfig(**SHAPE, rope_parameters=rope))


def draw(num_tokens: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, 97, num_tokens).tolist()


def prefill(runner: Runner, rows: list[list[int]], cache: RowCache, piece: Piece) -> Tensor:
    hidden = runner.prefill([np.array(row, np.int64) for row in rows], cache, piece)
    return runner.logits(hidden)


@pytest.mark.parametrize("name", [*SCHEMES])
@pytest.mark.parametrize("num_tokens", [5, ORIGINAL, 61, TARGET])
@torch.no_grad()
def test_logits_of_whole_rows_are_those_of_the_formula(name: str, num_tokens: int) -> None:
    model, tokens = llama(), draw(num_tokens)
    plain = model(torch.tensor([tokens])).logits[0]
    reindex(model, name, ORIGINAL, TARGET)
    found = model(torch.tensor([tokens])).logits[0]
    expected = reference_logits(llama(), tokens, name)
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3)
    # Where nothing lies beyond the unchanged part, the model is untouched; farther on it differs.
    num_plain = SCHEMES[name](ORIGINAL, TARGET).num_plain
    if num_tokens <= num_plain:
        assert torch.equal(found, plain)
    else:
        torch.testing.assert_close(found[:num_plain], plain[:num_plain], rtol=2e-3, atol=2e-3)
        assert float((found - plain).abs().max()) > 0.1


@torch.no_grad()
def test_the_reference_without_a_scheme_is_the_model() -> None:
    tokens = draw(40)
    plain = llama()(torch.tensor([tokens])).logits[0]
    expected = reference_logits(llama(), tokens, "plain")
    torch.testing.assert_close(plain.double(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", [*SCHEMES])
@torch.no_grad()
def test_cached_tokens_get_the_logits_of_whole_rows(name: str) -> None:
    """Two rows of other lengths, a common beginning from the cache, then one token at a time."""
    model = llama()
    reindex(model, name, ORIGINAL, TARGET)
    runner, begin = Runner(model, 4096), draw(50)
    rows = [[*begin, *draw(40, 1)], [*begin, *draw(25, 2)]]
    expected = [reference_logits(llama(), row, name) for row in rows]
    cache = RowCache(2, TARGET)
    prefill(runner, [begin], cache, Piece([0], 0, [0]))
    starts = [70, 55]
    parts = [row[:end] for row, end in zip(rows, starts, strict=True)]
    logits = prefill(runner, parts, cache, Piece([0, 0], len(begin), [0, 1]))
    for row, wanted, end in zip(logits, expected, starts, strict=True):
        found = row[: end - len(begin)].double()
        torch.testing.assert_close(found, wanted[len(begin) : end], rtol=2e-3, atol=2e-3)
    for step in range(20):
        at = [start + step for start in starts]
        new = [row[end] for row, end in zip(rows, at, strict=True)]
        found = runner.logits(runner.step(new, at, cache)).double()
        wanted = torch.stack([e[end] for e, end in zip(expected, at, strict=True)])
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", [*SCHEMES])
@torch.no_grad()
def test_generated_tokens_are_the_likeliest_of_the_formula(name: str) -> None:
    model = llama()
    reindex(model, name, ORIGINAL, TARGET)
    prompt = draw(60)
    runner = Runner(model, 4096)
    cache = RowCache(1, TARGET)
    last = prefill(runner, [prompt], cache, Piece([0], 0, [0]))[0, -1]
    row = [*prompt, int(last.argmax())]
    for _ in range(12):
        logits = runner.logits(runner.step([row[-1]], [len(row) - 1], cache))
        row.append(int(logits[0].argmax()))
    expected = reference_logits(llama(), row[:-1], name)
    likeliest = expected[len(prompt) - 1 :].topk(2)
    for token, values, choices in zip(
        row[len(prompt) :], likeliest.values, likeliest.indices, strict=True
    ):
        assert token == int(choices[0]) or float(values[0] - values[1]) < 1e-2


@pytest.mark.parametrize(
    ("original", "target"), [*itertools.product([7, 64, 8192], [8, 100, 131072])]
)
def test_no_distance_leaves_the_original_window(original: int, target: int) -> None:
    if target <= original:
        return
    near, size = group_size(original, target)
    assert (target - 1) // size + near - near // size <= original - 1
    assert size == 1 or (target - 1) // (size - 1) + near - near // (size - 1) > original - 1
    for scheme in (self_extend(original, target), dual_chunk(original, target)):
        at = torch.arange(0, target, max(1, target // 997))
        parts = torch.zeros(len(at), len(at), dtype=torch.int32)
        for part in scheme.parts:
            query, key = at, at
            if part.query_at and part.key_at:
                query, key = part.query_at(at), part.key_at(at)
            distance = query[:, None] - key
            seen = (at >= part.first(at)[:, None]) & (at < part.end(at)[:, None])
            parts += seen.int()
            if seen.any():
                assert int(distance[seen].min()) >= (part.query_at is not None)
                assert int(distance[seen].max()) <= original - 1
        # Each key up to a query's own belongs to one part, and later keys to none.
        assert torch.equal(parts, (at <= at[:, None]).int())


def test_windows_by_hand() -> None:
    """8K to 32K: a quarter stays; at 6 groups, (32767 // 6) + 2048 - 341 = 7168 < 8192."""
    assert group_size(8192, 32768) == (2048, 6)
    assert (32767 // 5) + 2048 - 2048 // 5 == 8192
    scheme = dual_chunk(8192, 32768)
    assert scheme.num_plain == 8192
    older, successive, _ = scheme.parts
    assert successive.query_at
    assert successive.key_at
    assert older.query_at
    at = torch.tensor([6144, 6145, 8191, 8192, 12287])
    assert successive.query_at(at).tolist() == [6144, 6145, 8191, 8191, 8191]
    assert older.query_at(at).tolist() == [8191] * 5
    assert successive.key_at(at).tolist() == [0, 1, 2047, 2048, 6143]


def model_of(kind: str) -> Any:
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    yarn["original_max_position_embeddings"] = ORIGINAL
    makers = {
        "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=16)),
        "cohere": (CohereForCausalLM, CohereConfig(**SHAPE)),
        "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**SHAPE, head_dim=16)),
        "window": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=16)),
        "yarn": (LlamaForCausalLM, LlamaConfig(**SHAPE, rope_parameters=yarn)),
    }
    return makers[kind]


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("cohere", "does not rotate halves of whole heads"),
        ("gemma3", "has"),
        ("window", "has layers without full attention"),
        ("yarn", "has RoPE of type yarn"),
    ],
)
def test_models_whose_positions_cannot_be_changed_are_refused(kind: str, problem: str) -> None:
    model = build(*model_of(kind))
    with pytest.raises(ValueError, match=problem):
        reindex(model, "self-extend", ORIGINAL, TARGET)


def test_norms_of_queries_and_bf16_do_not_matter() -> None:
    model = build(*model_of("qwen3"), scale=1.0).bfloat16()
    reindex(model, "dual-chunk", ORIGINAL, TARGET)
    assert torch.isfinite(model(torch.tensor([draw(90)])).logits).all()


@torch.no_grad()
def test_blocks_of_queries_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = llama(), torch.tensor([draw(100), draw(100, 1)])
    reindex(model, "dual-chunk", ORIGINAL, TARGET)
    whole = model(tokens).logits
    # 2 rows x 4 heads x 100 keys: seven queries at a time.
    monkeypatch.setattr("longred.attention.reindexed.BLOCK_LOGITS", 7 * 2 * 4 * 100)
    torch.testing.assert_close(model(tokens).logits, whole, rtol=1e-4, atol=1e-4)
