"""8-bit floats, emulated without a suitable GPU: effect on training, and refusals."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_loop import first_step, relative_error
from tiny_training import MakeJob
from torch import nn

from longred.errors import ConfigError, PreflightError
from longred.method.methods import SHORT_DISTILL, SHORT_LOGITS
from longred.models.load import hidden_states, load_model
from longred.training import checks, load, machine, persistence
from longred.training.layers import fp8
from longred.training.layers.activations import CHECKPOINTING
from longred.training.trainer import Trainer


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the trainer use emulated 8-bit floats on this machine."""
    to_fp8 = load.to_fp8
    monkeypatch.setattr(machine, "check_fp8", lambda device: None)
    monkeypatch.setattr(load, "to_fp8", lambda model, **_: to_fp8(model, emulate=True))


def e4m3(value: torch.Tensor) -> torch.Tensor:
    """Round to the nearest 8-bit float (3 fraction bits) after scaling the maximum to 448."""
    scale = 448.0 / value.abs().max()
    scaled = value * scale
    exponent = torch.floor(torch.log2(scaled.abs().clamp(min=2.0**-6)))
    unit = torch.exp2(exponent - 3)
    return torch.round(scaled / unit) * unit / scale


def test_a_layer_against_the_rounding_written_out(tiny_model_folder: Path):
    model = load_model(tiny_model_folder)
    fp8.to_fp8(model, emulate=True)
    layer = model.model.layers[1].mlp.up_proj
    assert type(layer).__name__ == "Float8Linear"
    assert type(model.lm_head) is nn.Linear
    input_ = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    weight = layer.weight.detach().bfloat16().double()
    expected = e4m3(input_.double()) @ e4m3(weight).T
    torch.testing.assert_close(layer(input_).double(), expected, rtol=1e-4, atol=1e-5)
    with fp8.without_fp8(model):
        assert torch.equal(layer(input_), nn.functional.linear(input_, layer.weight))
    torch.testing.assert_close(layer(input_).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_layers_round_as_others_do(tiny_model_folder: Path):
    tokens = torch.randint(2, 500, (2, 32), generator=torch.Generator().manual_seed(0))
    states, grads = [], []
    for is_compiled in (False, True):
        model = load_model(tiny_model_folder)
        fp8.to_fp8(model, emulate=True, is_compiled=is_compiled)
        for _ in range(2):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                state = hidden_states(model, tokens, layers=[3])[3].float()
            state.square().sum().backward()
        with fp8.without_fp8(model), torch.no_grad():
            assert not torch.equal(hidden_states(model, tokens, layers=[3])[3], state)
        states.append(state.detach())
        grads.append(model.model.layers[0].mlp.up_proj.weight.grad)
    for plain, compiled in (states, grads):
        assert float((compiled - plain).norm() / plain.norm()) < 0.02


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_layer_holds_its_master_and_no_copy(tiny_model_folder: Path):
    model = load_model(tiny_model_folder)
    fp8.to_fp8(model, emulate=True, is_compiled=True)
    layer = model.model.layers[0].mlp.up_proj
    held: list[torch.Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: (held.append(t), t)[1], lambda t: t)
    with hooks, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        layer(torch.randn(5, 64, requires_grad=True))
    own = layer.weight.untyped_storage().data_ptr()
    weights = [t for t in held if t.numel() == layer.weight.numel()]
    assert [t.untyped_storage().data_ptr() for t in weights] == [own]


@pytest.mark.medium
@pytest.mark.parametrize("kind", CHECKPOINTING)
def test_a_training_in_8_bits_stays_near(kind, emulated, make_job: MakeJob, tmp_path, monkeypatch):
    values = {"dtype": "bfloat16", "max_grad_norm": 1e9, "activation_checkpointing": kind}
    exact, grads = first_step(make_job(**values), tmp_path / "a", monkeypatch)
    metrics, found = first_step(make_job(fp8=True, **values), tmp_path / "b", monkeypatch)
    assert metrics["train/long_loss"] != exact["train/long_loss"]
    assert metrics["train/long_loss"] == pytest.approx(exact["train/long_loss"], rel=0.05)
    assert relative_error(found, grads) < 0.5


@pytest.mark.medium
def test_the_check_measures_the_first_rows_and_takes_no_step(
    emulated, make_job: MakeJob, tmp_path: Path, caplog, monkeypatch
):
    caplog.set_level("INFO")
    monkeypatch.setattr(checks, "HIDDEN_BOUND", 10.0)
    job = make_job(fp8=True, dtype="bfloat16")
    trainer = Trainer(job, tmp_path)
    persistence.load(trainer)
    said = [m for m in caplog.messages if m.startswith("fp8: hidden states of the")]
    assert len(said) == 3
    batch = next(b for b in trainer.next_batches() if b.bucket == "long")
    states = []
    for context in (fp8.without_fp8(trainer.student), torch.no_grad()):
        with context, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = hidden_states(
                trainer.student,
                batch.input_ids_BT,
                layers=[3],
                document_ids_BT=batch.document_ids_BT,
            )
            states.append(found[3].float())
    error = 100 * float((states[1] - states[0]).norm() / states[0].norm())
    assert f"fp8: hidden states of the long bucket move by {error:.2f} %" in said
    assert error > 0.1
    plain = Trainer(dataclasses.replace(job, fp8=False), tmp_path / "plain")
    expected = plain.loader.next_step()["long"].block_ids
    assert trainer.loader.next_step()["long"].block_ids == expected


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HIDDEN_BOUND", r"training\.fp8: moves the hidden states of the \w+ bucket by \d"),
        ("LOSS_BOUND", r"training\.fp8: moves the \w+ loss of the \w+ bucket from \d"),
    ],
)
def test_what_moves_too_far_is_refused_before_the_first_step(
    name, message, emulated, make_job: MakeJob, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(checks, "HIDDEN_BOUND", 10.0)
    monkeypatch.setattr(checks, name, 1e-9 if name == "HIDDEN_BOUND" else -1e9)
    trainer = Trainer(make_job(fp8=True, dtype="bfloat16"), tmp_path)
    with pytest.raises(PreflightError, match=message):
        persistence.load(trainer)
    assert trainer.step == 0


@pytest.mark.parametrize(
    ("term", "moved", "allowed"),
    [(SHORT_LOGITS, 0.09, True), (SHORT_LOGITS, 0.11, False), (SHORT_DISTILL, 0.02, False)],
)
def test_a_kl_of_predictions_may_move_further_than_a_cosine(term, moved, allowed, monkeypatch):
    states, found = torch.ones(1, 4, 8), iter([0.2, 0.2 + moved])
    monkeypatch.setattr(checks, "_run", lambda *args: (states, {term: next(found)}))
    objectives = SimpleNamespace(student=torch.nn.Module())
    batches = [SimpleNamespace(bucket="short")]
    if allowed:
        checks.check_fp8_quality(objectives, batches)
        return
    with pytest.raises(PreflightError, match=rf"moves the {term.objective} loss of the short"):
        checks.check_fp8_quality(objectives, batches)


def test_a_device_without_8_bit_products_is_refused(make_job: MakeJob, tmp_path, monkeypatch):
    monkeypatch.setattr("longred.models.load.load_model", None)
    with pytest.raises(PreflightError, match=r"training\.fp8: .* the device is cpu; set it to"):
        Trainer(make_job(fp8=True, dtype="bfloat16"), tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(PreflightError, match=r"compute capability 8\.9 .* this one has 8\.6"):
        fp8.check_fp8(torch.device("cuda"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": "float32"}, r"training\.fp8: needs training\.dtype bfloat16"),
        ({"dtype": "bfloat16", "method": "lora"}, r"training\.fp8: does not work with adapters"),
    ],
)
def test_what_cannot_be_had_together_is_refused(values, message, make_job: MakeJob):
    # Imported here: bare GPU machines run the last test of this file and have no pydantic.
    from longred.config import load_recipe

    with pytest.raises(ConfigError, match=message):
        make_job(fp8=True, **values)
    changes = {"fp8": "true", **values}
    with pytest.raises(ConfigError, match=message):
        load_recipe("demo", [f"training.{name}={value}" for name, value in changes.items()])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernels_round_as_the_emulation_does(tiny_model_folder: Path):
    pytest.importorskip("torchao")
    device = torch.device("cuda")
    fp8.check_fp8(device)
    tokens = torch.randint(2, 500, (2, 64), device=device)
    states = []
    for emulate in (False, True):
        model = load_model(tiny_model_folder, device=device)
        fp8.to_fp8(model, emulate=emulate)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            states.append(hidden_states(model, tokens, layers=[3])[3].float())
    assert float((states[0] - states[1]).norm() / states[1].norm()) < 0.02
