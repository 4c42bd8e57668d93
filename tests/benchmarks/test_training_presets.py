"""Every preset of the trainer's benchmark is a training that the trainer accepts."""

from pathlib import Path

import pytest
import training


@pytest.mark.parametrize("name", training.PRESETS)
def test_a_preset_is_accepted(name: str, tmp_path: Path) -> None:
    preset = training.PRESETS[name]
    job = training.make_job(preset, preset.layers[0], tmp_path, 2)
    assert set(job.rows) == set(preset.rows) <= set(preset.lengths)
    config = training.model_config(preset, preset.layers[0], theta=5e5)
    assert config.hidden_size % config.num_attention_heads == 0
