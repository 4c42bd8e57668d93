"""Perplexity by position and LongPPL against slow float64 sums over single tokens."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from longred.config import EvaluationConfig
from longred.errors import ConfigError, MismatchError
from longred.evaluation.perplexity import (
    MIN_GAIN_NATS,
    MIN_LOG_PROBABILITY,
    by_position,
    choose_rows,
    freeze_rows,
    key_tokens,
    measure,
    token_losses,
)
from longred.evaluation.samples import freeze
from longred.evaluation.tasks import read_lines
from longred.models.load import load_model
from longred.store.artifacts import Store, read_json

LENGTH, SHORT = 60, 16


@pytest.fixture(scope="module")
def judge(tiny_model_folder: Path) -> Any:
    """A model with a scaled head, so that it predicts some tokens well."""
    model = load_model(tiny_model_folder)
    with torch.no_grad():
        model.get_output_embeddings().weight *= 60
    return model


@pytest.fixture(scope="module")
def rows(documents: list[tuple[str, str]], tokenizer: Any) -> torch.Tensor:
    texts = [text for _, text in documents]
    return torch.tensor(choose_rows(texts, tokenizer, length=LENGTH, num_tokens=8 * LENGTH))


def nats(model: Any, context: torch.Tensor, token: int) -> float:
    """Return the loss of one prediction in float64."""
    with torch.no_grad():
        hidden = model.model(context[None]).last_hidden_state[0, -1].double()
    logits = model.get_output_embeddings().weight.double() @ hidden
    return float((torch.logsumexp(logits, 0) - logits[token]).detach())


def test_losses_equal_single_predictions(judge: Any, rows: torch.Tensor) -> None:
    found = token_losses(judge, rows[:2])
    for row, losses in zip(rows[:2], found, strict=True):
        slow = [nats(judge, row[:place], int(row[place])) for place in range(1, LENGTH)]
        torch.testing.assert_close(
            losses.double(), torch.tensor(slow, dtype=torch.float64), rtol=2e-4, atol=2e-4
        )


@pytest.mark.medium
def test_key_tokens_equal_the_definition(judge: Any, rows: torch.Tensor) -> None:
    found = key_tokens(judge, rows, short_context=SHORT)
    stride = SHORT // 4
    differing = 0
    for number, row in enumerate(rows):
        for place in range(1, LENGTH):
            start = max(0, (place - SHORT) // stride * stride)
            long = nats(judge, row[:place], int(row[place]))
            short = nats(judge, row[start:place], int(row[place]))
            assert SHORT <= place - start < SHORT + stride or start == 0
            gain, own = short - long, -long
            if min(abs(gain - MIN_GAIN_NATS), abs(own - MIN_LOG_PROBABILITY)) < 1e-2:
                continue  # rounding decides
            wanted = gain > MIN_GAIN_NATS and own > MIN_LOG_PROBABILITY
            differing += bool(found[number, place - 1]) != wanted
    assert differing == 0
    assert found.any()
    assert not found[:, : SHORT - 1].any()


def test_bins_hold_every_token_once() -> None:
    losses = torch.arange(2 * 10, dtype=torch.float32).view(2, 10)
    keys = torch.zeros(2, 10, dtype=torch.bool)
    keys[0, 3] = keys[1, 4] = True
    found = by_position(losses, keys, num_bins=3)
    assert [each["end"] for each in found["bins"]] == [4, 7, 11]
    assert [each["nats"] for each in found["bins"]] == [6.0, 9.0, 12.5]
    assert found["nats_per_token"] == 9.5
    assert found["num_key_tokens"] == 2
    assert found["long_ppl"] == pytest.approx(math.exp(8.5))
    assert by_position(losses, torch.zeros_like(keys), num_bins=3)["long_ppl"] is None
    assert len(by_position(losses, None, num_bins=99)["bins"]) == 10


@pytest.mark.medium
def test_frozen_rows_are_measured(
    judge: Any, documents: list[tuple[str, str]], tokenizer: Any
) -> None:
    texts = [text for _, text in documents]
    settings = {"length": LENGTH, "num_tokens": 16 * LENGTH, "short_context": SHORT}
    frozen = freeze_rows(texts, tokenizer, judge=lambda: judge, **settings)
    found = measure(judge, frozen, num_bins=4)
    chosen = [
        nats(judge, torch.tensor(row["ids"][:place]), row["ids"][place])
        for row in frozen
        for place in row["keys"]
    ]
    assert found["num_key_tokens"] == len(chosen) > 0
    assert found["long_ppl"] == pytest.approx(math.exp(sum(chosen) / len(chosen)), rel=1e-3)
    assert found["perplexity"] == pytest.approx(math.exp(found["nats_per_token"]))
    plain = freeze_rows(texts, tokenizer, judge=None, **settings)
    assert [row["ids"] for row in plain] == [row["ids"] for row in frozen]
    assert "long_ppl" not in measure(judge, plain, num_bins=4)


def test_no_logits_of_a_whole_row_are_held(
    judge: Any, rows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longred.evaluation import perplexity

    sizes: list[int] = []
    head = judge.get_output_embeddings()
    handle = head.register_forward_hook(lambda m, i, out: sizes.append(out.shape[0]))
    monkeypatch.setattr(perplexity, "CHUNK_TOKENS", 7)
    try:
        token_losses(judge, rows[:1])
    finally:
        handle.remove()
    assert max(sizes) == 7
    assert sum(sizes) == LENGTH - 1


def test_too_long_lengths_and_short_contexts_are_named(
    documents: list[tuple[str, str]], tokenizer: Any
) -> None:
    texts = [text for _, text in documents]
    with pytest.raises(ConfigError, match=r"evaluation\.perplexity\.lengths: no held-out"):
        choose_rows(texts, tokenizer, length=10**7, num_tokens=1)
    with pytest.raises(ConfigError, match=r"evaluation\.perplexity\.short_context: 60"):
        freeze_rows(
            texts,
            tokenizer,
            length=LENGTH,
            num_tokens=1,
            judge=lambda: None,
            short_context=LENGTH,
        )


def config_with(**perplexity: Any) -> EvaluationConfig:
    return EvaluationConfig.model_validate(
        {
            "ruler": {"tasks": [], "lengths": [64]},
            "short": {"tasks": ["cloze"], "num_samples": 4},
            "original_window": 64,
            "target_window": 256,
            "dtype": "float32",
            "device": "cpu",
            "perplexity": {"num_tokens": 600, **perplexity},
        }
    )


@pytest.mark.medium
def test_rows_and_keys_are_frozen_once_for_every_model(
    tiny_model_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    config = config_with(lengths=[128, 256], judge=str(tiny_model_folder))
    freeze(config, tiny_model_folder, data_folder, folder, store=Store(tmp_path / "store"))
    index = read_json(folder / "index.json")["perplexity"]
    assert set(index) == {"128", "256"}
    rows = read_lines(folder / index["256"]["file"])
    assert {len(row["ids"]) for row in rows} == {256}
    assert all("keys" in row for row in rows)


def test_a_judge_reads_the_same_tokens(
    tiny_model_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "judge"
    other.mkdir()
    for path in tiny_model_folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["unk_token"] = None
    (other / "tokenizer.json").write_text(json.dumps(tokenizer, indent=4))
    folder = tmp_path / "samples"
    folder.mkdir()
    config = config_with(lengths=[128], judge=str(other))
    with pytest.raises(MismatchError, match=r"evaluation\.perplexity\.judge: .* another tokenizer"):
        freeze(config, tiny_model_folder, data_folder, folder, store=Store(tmp_path / "store"))
