from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from longred.errors import ConfigError
from longred.models.extension import write_extension
from longred.models.load import load_model
from longred.profiling.drift import profile_drift
from longred.profiling.sweep import Setting, original_theta, sweep_drift


@pytest.fixture(scope="module")
def teacher(tiny_model_folder: Path) -> PreTrainedModel:
    return load_model(tiny_model_folder)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 400, (2, 33))


def test_a_setting_drifts_like_the_extension_that_was_written(
    teacher: PreTrainedModel, tokens: Tensor, tiny_model_folder: Path, tmp_path: Path
) -> None:
    settings = [Setting("abf", 1e6), Setting("pi", 4)]
    seen: list[tuple[int, int]] = []
    points = sweep_drift(
        teacher,
        settings,
        tokens,
        batch_rows=2,
        on_progress=lambda done, total, _: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]
    for setting, point in zip(settings, points, strict=True):
        write_extension(
            tiny_model_folder,
            tmp_path / setting.method,
            digest="",
            method=setting.method,
            original_window=64,
            target_window=256,
            **({"rope_theta": setting.value} if setting.method == "abf" else {}),
        )
        student = load_model(tmp_path / setting.method)
        drift = profile_drift(teacher, student, tokens, batch_rows=2)
        assert point.attention_kl_per_layer == drift.attention_kl
        assert point.hidden_similarity_per_layer == drift.hidden_similarity
        assert point.last_similarity == drift.hidden_similarity[-1]
        assert point.attention_kl == pytest.approx(sum(drift.attention_kl) / 3)
    assert points[0].attention_kl > 0


def test_the_original_is_left_as_it_is(teacher: PreTrainedModel, tokens: Tensor) -> None:
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    sweep_drift(teacher, [Setting("abf", 1e6)], tokens, batch_rows=2)
    assert original_theta(teacher) == 10000
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight, before[name])
    assert profile_drift(teacher, teacher, tokens, batch_rows=2).attention_kl == [0.0] * 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting("abf", 5000), "extension.rope_theta: 5000 does not raise"),
        (Setting("pi", 1), "a factor must be above 1, got 1"),
        (Setting("best", 2), "extension.method: 'best'"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_measured(
    teacher: PreTrainedModel, tokens: Tensor, setting: Setting, message: str
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    with pytest.raises(ConfigError, match=message):
        sweep_drift(teacher, [Setting("pi", 2), setting], tokens, batch_rows=2, on_progress=never)
