"""Merged weights against the explicit average, and the stage that reuses cpt's student."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import MakeJob

from longred.errors import MismatchError
from longred.models.load import load_config, load_model
from longred.training.loop import train
from longred.training.result import merge_student


@pytest.fixture(scope="module")
def student(make_job: MakeJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(make_job(method="cpt", num_steps=3), tmp_path_factory.mktemp("cpt"))


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_weights_are_averaged(weight: float, student: Path, make_job: MakeJob, tmp_path: Path):
    original = Path(make_job().teacher_folder)
    merge_student(student, original, tmp_path, weight=weight)
    ours, theirs, result = (
        {name: value.double() for name, value in load_file(f / "model.safetensors").items()}
        for f in (student, original, tmp_path)
    )
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    for name, value in result.items():
        expected = weight * ours[name] + (1 - weight) * theirs[name]
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)
    assert load_config(tmp_path).rope_parameters == load_config(student).rope_parameters
    assert load_model(tmp_path).config.max_position_embeddings == 128
    summary = json.loads((tmp_path / "training.json").read_text())
    assert summary["method"] == "merge"
    assert (summary["merged_method"], summary["merge_weight"]) == ("cpt", weight)
    assert (tmp_path / "metrics.jsonl").read_text() == (student / "metrics.jsonl").read_text()


def test_another_size_is_refused(student: Path, make_job: MakeJob, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(make_job().teacher_folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    weights = load_file(other / "model.safetensors")
    for name in weights:
        if "gate_proj" in name or "up_proj" in name:
            weights[name] = weights[name][:48].contiguous()
        if "down_proj" in name:
            weights[name] = weights[name][:, :48].contiguous()
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MismatchError, match=r"layers\.0\.mlp\.gate_proj\.weight is not the same"):
        merge_student(student, other, tmp_path / "merged", weight=0.5)
