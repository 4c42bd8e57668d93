import pytest
import torch
from safetensors.torch import load_file

from longred.demo import pretrain
from longred.demo.tokenizer import load_tokenizer, train_tokenizer

TEXTS = ["def f(x):\n    return x + 1\n\n" * 80, "The tea is hot. The cup is full.\n" * 60]
TINY = pretrain.PretrainSettings(
    hidden_size=32,
    intermediate_size=64,
    num_layers=1,
    num_heads=2,
    num_key_value_heads=1,
    window=128,
    practice_rows=4,
    practice_length=128,
    max_copying_steps=2,
    max_lookup_steps=1,
    max_recall_steps=1,
    mixed_rows=4,
    mixed_steps=2,
    warmup_steps=2,
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, TINY.window)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(tokenizer, work):
    work.mkdir(exist_ok=True)
    return pretrain.Pretraining(TINY, tokenizer, TEXTS, work=work)


def test_resume_equals_uninterrupted_in_every_phase(tokenizer, tmp_path):
    whole = start(tokenizer, tmp_path / "whole")
    phases = []
    while not whole.finished:
        phases.append(whole.progress.phase)
        whole.step()
    assert phases == ["copying", "copying", "lookup", "recall", "mixture", "mixture"]
    for _ in phases:
        part = start(tokenizer, tmp_path / "parts")
        part.step()
        part.save()
    assert part.finished
    assert part.progress.step == whole.progress.step
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, part.model.state_dict()[name]), name


def test_run_exports_a_loadable_folder(tokenizer, tmp_path):
    training = start(tokenizer, tmp_path / "work")
    pretrain.run(training, tmp_path / "model", save_seconds=0.0)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    saved = load_file(tmp_path / "model" / "model.safetensors")
    weights = training.model.state_dict()
    assert torch.equal(saved["model.norm.weight"], weights["model.norm.weight"])
    assert load_tokenizer(tmp_path / "model").get_vocab() == tokenizer.get_vocab()


def test_checkpoint_of_other_settings_is_refused(tokenizer, tmp_path):
    training = start(tokenizer, tmp_path)
    training.save()
    other = pretrain.PretrainSettings(**{**TINY.__dict__, "seed": 1})
    with pytest.raises(ValueError, match="other settings"):
        pretrain.Pretraining(other, tokenizer, TEXTS, work=tmp_path)


def test_learning_rate_warms_up_stays_and_falls():
    settings = pretrain.PretrainSettings()
    peak = settings.learning_rate
    at = lambda **values: pretrain.learning_rate(settings, pretrain.Progress(**values))  # noqa: E731
    assert at(step=0) == pytest.approx(peak / settings.warmup_steps)
    assert at(step=500, phase="lookup") == peak
    start = {"phase": "mixture", "phase_start": 700}
    assert at(step=700, **start) == peak
    end = at(step=700 + settings.mixed_steps, **start)
    assert end == pytest.approx(peak * settings.final_fraction)
