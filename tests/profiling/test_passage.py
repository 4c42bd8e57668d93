"""The passage at rising positions: the model's own loss, and a RoPE that breaks on the way."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from longred.models.load import load_config, load_model, resolve_model
from longred.profiling.passage import (
    PASSAGE,
    keeps_its_perplexity,
    passage_perplexities,
    passage_positions,
    passage_text,
)


def test_positions_reach_the_end_of_the_window() -> None:
    assert passage_positions(1024, 100) == [0, 115, 231, 462, 924]
    assert passage_positions(100, 100) == [0]


def test_perplexity_is_the_models_own_and_stays(demo_passage: list[int]) -> None:
    folder = resolve_model("demo")
    found = passage_perplexities(load_model(folder), demo_passage, 256)
    ids = torch.tensor([demo_passage])
    with torch.no_grad():
        own = AutoModelForCausalLM.from_pretrained(folder)(ids, labels=ids).loss
    assert found[0].perplexity == pytest.approx(math.exp(own), rel=1e-5)
    assert [one.position for one in found] == passage_positions(256, len(demo_passage))
    assert all(one.perplexity == pytest.approx(found[0].perplexity, rel=1e-2) for one in found)
    assert keeps_its_perplexity(found)


def test_a_rope_that_changes_on_the_way_is_seen(demo_passage: list[int], tmp_path: Path) -> None:
    """Short factors that were lost are read as well as ever beyond the original window only."""
    folder = resolve_model("demo")
    config = load_config(folder)
    pairs = config.head_dim // 2
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": config.rope_parameters["rope_theta"],
        "short_factor": [1.0] * pairs,
        "long_factor": [0.01] * pairs,
        "original_max_position_embeddings": 200,
        "factor": 5.12,
        "attention_factor": 1.0,
    }
    config.max_position_embeddings = 1024
    config.save_pretrained(tmp_path)
    for file in folder.glob("*.safetensors"):
        (tmp_path / file.name).symlink_to(file)
    found = passage_perplexities(load_model(tmp_path), demo_passage, 1024)
    assert not keeps_its_perplexity(found)
    assert f"at most {max(one.perplexity for one in found):.4g} later" in passage_text(found)


@pytest.fixture(scope="module")
def demo_passage() -> list[int]:
    return AutoTokenizer.from_pretrained(resolve_model("demo"))(PASSAGE)["input_ids"]
