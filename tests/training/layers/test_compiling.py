"""Compiled layers: as accurate as eager ones, and compiled once for all layers."""

import copy
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from longred.attention import function as attention
from longred.errors import PreflightError
from longred.models.load import hidden_states
from longred.training.layers.activations import checkpoint_activations
from longred.training.layers.compiling import check_compiler, compile_layers, compiled
from longred.training.layers.mlp_tiles import tile_mlps
from longred.training.machine import MACHINE_METRICS
from longred.training.trainer import Trainer

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=10,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
    bos_token_id=0,
    eos_token_id=1,
)
NUM_LAYERS = 10
"""More layers than torch's recompile limit, in case each layer counted as a function."""
LORA = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "up_proj"], "objectives": "cpt"}

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


def build(kind: str, tile_tokens: int, *, is_compiled: bool) -> PreTrainedModel:
    attention.register()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIG), attn_implementation="longred")
    attention.guard(model)
    if is_compiled:
        compile_layers(model)
    tile_mlps(model, tile_tokens, is_compiled=is_compiled)
    checkpoint_activations(model, kind)
    return model.train()


def run(model: PreTrainedModel, number: int, dtype: torch.dtype):
    """Return states and gradients, with positions, documents and capture that vary by `number`."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(2, 64, (2, 40), generator=generator)
    skipped = torch.arange(40) + torch.where(torch.arange(40) < 20, 0, 100 + number)
    documents = torch.zeros(2, 40, dtype=torch.long)
    documents[0, 5 + number :] = 1
    captured = {}
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False, enabled=dtype != torch.float64):
        states = hidden_states(
            model,
            tokens,
            layers=[1, NUM_LAYERS],
            position_ids_BT=skipped.expand(2, -1),
            document_ids_BT=documents,
            capture=lambda found: captured.setdefault(found.layer, found.query_BHTd),
        )
    queries = sum(query.to(states[1].dtype).square().sum() for query in captured.values())
    total = states[1].square().sum() + states[NUM_LAYERS].abs().sum() + queries
    model.zero_grad()
    total.backward()
    grads = {name: w.grad.double() for name, w in model.named_parameters() if w.grad is not None}
    return {name: state.detach().double() for name, state in states.items()}, grads


def error(found, expected) -> float:
    difference = sum((found[n] - expected[n]).square().sum() for n in expected)
    return float((difference / sum(g.square().sum() for g in expected.values())).sqrt())


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("kind", "tile_tokens"),
    [
        ("selective", 32),
        ("none", 0),
        ("full", 0),
    ],
)
def test_numbers_are_as_exact_and_layers_are_compiled_once(kind: str, tile_tokens: int):
    torch._dynamo.reset()
    counters.clear()
    plain, ours = (build(kind, tile_tokens, is_compiled=c) for c in (False, True))
    exact = build("none", 0, is_compiled=False).double()
    for number in range(3):
        found, expected = (run(model, number, torch.bfloat16) for model in (ours, plain))
        references = run(exact, number, torch.float64)
        for one, other, reference in zip(found, expected, references, strict=True):
            assert error(one, reference) < 1.3 * error(other, reference)
        # A few values round to the other neighbouring bfloat16 number.
        assert error(found[0], expected[0]) < 0.5 * error(expected[0], references[0])
        if number == 0:
            graphs = counters["stats"]["unique_graphs"]
    # One graph each for before and after attention, with and without inputs that need gradients,
    # and for the tiles.
    assert 0 < graphs < NUM_LAYERS
    assert counters["stats"]["unique_graphs"] == graphs, "new positions and documents compile anew"


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("method", ["cpt", "lora"])
def test_a_training_takes_the_same_steps(method, make_job, tmp_path: Path):
    metrics = {}
    for is_compiled in (False, True):
        job = make_job(
            method=method,
            lora=LORA if method == "lora" else {},
            rows={"long": 2},
            compile=is_compiled,
            activation_checkpointing="selective",
            num_steps=2,
        )
        trainer = Trainer(job, tmp_path / str(is_compiled))
        trainer.train_step()
        metrics[is_compiled] = dict(trainer.train_step())
        for name in MACHINE_METRICS:
            metrics[is_compiled].pop(name, None)
    assert metrics[True] == pytest.approx(metrics[False], rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_more_shapes_than_torch_allows_are_compiled_in_any_thread():
    double = compiled(lambda x: x.sin() * 2.0)

    def ten_shapes() -> None:
        # Backward passes on a GPU run in an autograd thread.
        for size in range(2, 12):
            double(torch.ones(size))

    torch._dynamo.utils.counters.clear()
    thread = threading.Thread(target=ten_shapes)
    thread.start()
    thread.join()
    assert torch._dynamo.utils.counters["frames"]["ok"] == 10


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(PreflightError, match=r"training\.compile: needs a C\+\+ compiler"):
        check_compiler(torch.device("cpu"), "training.compile")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(PreflightError, match=r"training\.fp8: needs Triton"):
        check_compiler(torch.device("cuda"), "training.fp8")
