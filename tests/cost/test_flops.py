"""Planned FLOPs against explicit counts and torch's own FLOP counter."""

import dataclasses
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Phi3Config

from longred.cost.flops import batches, forward_flops, needed_flops, recomputed_flops, step_flops
from longred.cost.flops import visible_keys as visible
from longred.cost.shape import shape_of
from longred.method.job import TrainingJob

LENGTHS = {"long": 32768, "short": 1024, "original": 8192}
LLAMA_8B = LlamaConfig(
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14336,
    vocab_size=128256,
    tie_word_embeddings=False,
)
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
}


def make_job(**values: object) -> TrainingJob:
    defaults = {
        "method": "longred-c",
        "data_folder": "",
        "student_folder": "",
        "teacher_folder": "",
        "data_digest": "",
        "rows": {"long": 32, "short": 768, "original": 32},
        "original_window": 8192,
        "target_window": 32768,
        "num_steps": 512,
        "distill_layers": (1, 9, 12, 14, 15, 32),
    }
    return TrainingJob(**{**defaults, **values})


@pytest.mark.parametrize(("length", "window"), [(1, None), (7, None), (7, 3), (7, 7), (9, 20)])
def test_visible_keys_are_counted(length: int, window: int | None) -> None:
    pairs = sum(
        1
        for query in range(length)
        for key in range(query + 1)
        if window is None or query - key < window
    )
    assert visible(length, window) * length == pytest.approx(pairs)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, tie_word_embeddings=False),
        Phi3Config(**SMALL, pad_token_id=0),
        Gemma3TextConfig(**SMALL, head_dim=32, sliding_window=8, layer_types=None),
    ],
    ids=lambda config: config.model_type,
)
def test_a_forward_pass_takes_what_torch_counts(config) -> None:
    """Eager attention: torch counts all query-key pairs; causal rows need about half of them."""
    shape = shape_of(config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert shape.num_parameters == sum(weight.numel() for weight in model.parameters())
    length = 24
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.ones(1, length, dtype=torch.long), use_cache=False)
    expected = forward_flops(shape, length, head=True)
    all_pairs = 4.0 * shape.attention_size * length * length * shape.num_layers
    # torch also counts RoPE's angles, the product of positions and frequencies.
    angles = 2.0 * length * shape.head_dim
    counted = counter.get_total_flops()
    assert counted == pytest.approx(
        (expected.linear + expected.head) * length + all_pairs, abs=2 * angles
    )


def test_the_published_shape_and_step() -> None:
    """Llama-3-8B: 13.96 GFLOPs of layers, 1.05 of the head, 2.62e-4 x length of attention."""
    shape, job = shape_of(LLAMA_8B), make_job()
    assert shape.num_parameters == 8_030_261_248
    forward = forward_flops(shape, 32768, head=True)
    assert forward.linear == pytest.approx(13.96e9, rel=1e-3)
    assert forward.head == pytest.approx(1.05e9, rel=1e-2)
    assert forward.attention_forward == pytest.approx(8.59e9, rel=1e-3)
    per_token = {
        batch.bucket: needed_flops(shape, job, batch).total / batch.step_tokens
        for batch in batches(job, LENGTHS)
    }
    assert per_token["long"] == pytest.approx(70.8e9, rel=1e-3)
    assert per_token["short"] == pytest.approx(56.9e9, rel=1e-3)
    assert per_token["original"] == pytest.approx(64.4e9, rel=1e-3)
    assert step_flops(shape, job, LENGTHS) == pytest.approx(135.9e15, rel=1e-3)


def test_processes_share_the_step_and_change_nothing_of_it() -> None:
    shape, alone = shape_of(LLAMA_8B), make_job()
    together = dataclasses.replace(alone, parallel={"num_processes": 8, "sequence_parallel": 4})
    assert step_flops(shape, together, LENGTHS) == pytest.approx(step_flops(shape, alone, LENGTHS))
    for one, part in zip(batches(alone, LENGTHS), batches(together, LENGTHS), strict=True):
        assert part.step_tokens * 8 == one.step_tokens
    assert batches(together, LENGTHS)[0].tokens == 32768 // 4


def test_checkpointing_computes_again_what_it_does_not_keep() -> None:
    shape = shape_of(LLAMA_8B)

    def again(**values: object) -> float:
        job = make_job(short_micro_batch_tokens=8192, **values)
        return sum(recomputed_flops(shape, job, b).total for b in batches(job, LENGTHS))

    linear = 2.0 * shape.num_linear * 32 * 32768
    # The last product of a layer is not recomputed: no gradient needs it.
    last = 2.0 * 32 * 4096 * 14336 * 32 * 32768
    assert again() == 0
    # Short and original micro-batches are small enough to hold everything.
    assert again(activation_checkpointing="selective") == pytest.approx(linear - last)
    assert again(activation_checkpointing="selective", compile=True) == pytest.approx(linear)
    full = forward_flops(shape, 32768, head=False).total * 32 * 32768
    assert again(activation_checkpointing="full") == pytest.approx(full - last)
    # Tiles recompute gate and up in micro-batches that hold all other activations.
    tokens = 32 * 32768 + 768 * 1024 + 32 * 8192
    assert again(mlp_tile_tokens=4096) == pytest.approx(2 * last * tokens / (32 * 32768))


def test_adapters_spare_the_gradients_of_frozen_weights() -> None:
    lora = {"rank": 16, "alpha": 32.0, "targets": ["q_proj", "v_proj"], "objectives": "longred-c"}
    shape, job = shape_of(LLAMA_8B), make_job(method="lora", lora=lora)
    adapters = 16 * (4096 + 4096 + 4096 + 1024) * 32
    assert shape.num_adapter(lora) == adapters
    long = batches(job, LENGTHS)[0]
    found = needed_flops(shape, job, long)
    assert found.linear / long.step_tokens == pytest.approx(4.0 * shape.num_linear + 6.0 * adapters)


@pytest.mark.parametrize("values", [{"method": "attention-only"}, {"trained": "attention"}])
def test_attention_alone_spares_the_weight_gradients_of_mlps_and_the_head(
    values: dict[str, str],
) -> None:
    rows = {"long": 32} if "method" in values else {"long": 32, "short": 768, "original": 32}
    shape, job = shape_of(LLAMA_8B), make_job(rows=rows, **values)
    attention = (2 * 4096 * 4096 + 2 * 4096 * 1024) * 32
    assert shape.num_attention == attention
    long = batches(job, LENGTHS)[0]
    found = needed_flops(shape, job, long) * (1 / long.step_tokens)
    mlps = 3 * 4096 * 14336 * 32
    assert found.linear == pytest.approx(6.0 * attention + 4.0 * mlps)
    assert found.head == pytest.approx(4.0 * 4096 * 128256)


def test_pose_is_planned_for_the_rows_that_it_cuts() -> None:
    shape, job = shape_of(LLAMA_8B), make_job(method="pose", rows={"long": 32})
    (batch,) = batches(job, LENGTHS)
    assert (batch.length, batch.rows, batch.step_tokens) == (8192, 128, 32 * 32768)
    assert batch.tokens == 4 * 8192
    found = step_flops(shape, job, LENGTHS) / (32 * 32768)
    dense = 6.0 * (shape.num_linear + shape.num_head)
    attention = 32 * 3 * 4.0 * 4096 * 8193 / 2
    assert found == pytest.approx(dense + attention)
    uneven = make_job(method="pose", rows={"long": 2}, target_window=20000)
    assert uneven.seen_rows("long", 20000) == (4, 8192)


def test_micro_batches_are_cut_as_the_trainer_cuts_them() -> None:
    job = make_job(rows={"long": 2, "short": 5, "original": 3}, micro_batch_tokens=32768 * 2)
    long, short, original = batches(job, LENGTHS)
    assert (long.count, long.tokens) == (1, 65536)
    assert (short.count, short.tokens) == (1, 5 * 1024)
    job = dataclasses.replace(job, short_micro_batch_tokens=2048)
    _, short, original = batches(job, LENGTHS)
    assert (short.count, short.tokens) == (math.ceil(5 / 2), 2048)
    assert (original.count, original.tokens) == (3, 8192)
