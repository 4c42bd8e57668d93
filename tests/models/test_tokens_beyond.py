"""Tokenizers with ids beyond the embeddings: harmless if no text gets them, else refused."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from longred.cli import app
from longred.config import load_recipe
from longred.data.tokens import TextTokenizer
from longred.errors import ConfigError
from longred.evaluation.local_lm import LocalLM, Request
from longred.models.folder import check_folder
from longred.models.load import load_model, load_tokenizer

IMAGE = "<image_soft_token>"
SIZE = 512
"""Rows of the embeddings; ids from here on do not exist."""


def with_token(folder: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """Copy a model and change its tokenizer.json."""
    shutil.copytree(folder, target)
    path = target / "tokenizer.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return target


def add(values: Any, *, special: bool, content: str = IMAGE) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    values["added_tokens"].append({"id": SIZE, "content": content, "special": special, **flags})


@pytest.fixture
def gemma_like(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """As Gemma-3-1B: a control token for images, one id behind the last embedding."""
    return with_token(tiny_model_folder, tmp_path / "m", lambda v: add(v, special=True))


def test_a_control_token_beyond_the_embeddings_never_occurs(gemma_like: Path) -> None:
    check_folder(gemma_like)
    text = f"def f(): {IMAGE} return {IMAGE}"
    (row,) = TextTokenizer(gemma_like, add_bos=None).encode([text])
    ids = load_tokenizer(gemma_like)(text)["input_ids"]
    assert len(load_tokenizer(gemma_like)) == SIZE + 1
    assert int(np.max(row)) < SIZE
    assert max(ids) < SIZE
    assert list(row) == list(ids)
    assert load_tokenizer(gemma_like).decode(ids[1:]) == text


def test_text_with_its_name_is_evaluated(gemma_like: Path) -> None:
    lm = LocalLM(load_model(gemma_like), load_tokenizer(gemma_like), max_tokens=64)
    ((score, _),) = lm.loglikelihood([Request((IMAGE, f" {IMAGE}"), 0)])
    (answer,) = lm.generate_until([Request((IMAGE, {"max_gen_toks": 3, "until": []}), 0)])
    assert math.isfinite(score)
    assert lm.endings[IMAGE]["output_tokens"] == 3 or lm.endings[IMAGE]["ended"] == "eos"
    assert isinstance(answer, str)


def test_a_first_recipe_is_made_for_it(
    gemma_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = json.loads((gemma_like / "config.json").read_text())
    (gemma_like / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    words = " ".join(f"number {n} is {n * n}, {IMAGE}" for n in range(40_000))
    (tmp_path / "text.txt").write_text(words)
    command = ["init", "own", "--model", str(gemma_like), "--target-window", "1024"]
    result = CliRunner().invoke(app, [*command, "--text", "text.txt", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert load_recipe("own.yaml").model.path == str(gemma_like)


def ordinary(values: Any) -> None:
    values["model"]["vocab"]["zzz"] = SIZE


def matched(values: Any) -> None:
    add(values, special=False)


def begins_with_it(values: Any) -> None:
    add(values, special=True)
    values["post_processor"]["special_tokens"]["<|bos|>"]["ids"] = [SIZE]


def nested(values: Any) -> None:
    begins_with_it(values)
    values["post_processor"] = {"type": "Sequence", "processors": [values["post_processor"]]}


@pytest.mark.parametrize("change", [ordinary, matched, begins_with_it, nested])
def test_ids_that_text_can_get_are_refused(
    change: Callable[[Any], None], tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = with_token(tiny_model_folder, tmp_path / "m", change)
    with pytest.raises(ConfigError, match="has 513 token ids and the model's vocab_size is 512"):
        check_folder(folder)
