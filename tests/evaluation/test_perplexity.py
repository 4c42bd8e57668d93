"""Held-out loss against a slow float64 sum over single tokens."""

import math
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from longred.errors import ConfigError
from longred.evaluation.perplexity import held_out_loss
from longred.models.load import load_model


@pytest.mark.medium
def test_loss_equals_slow_reference(tiny_model_folder: Path, tokenizer: Any) -> None:
    text = Path(str(textwrap.__file__)).read_text(encoding="utf-8")
    window = 48
    model = load_model(tiny_model_folder)
    found = held_out_loss(model, tokenizer, [text], window=window, num_tokens=10**9, batch_rows=2)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    step = window - 1
    precise = load_model(tiny_model_folder, dtype=torch.float64)
    nats, num_bytes, count = 0.0, 0, 0
    for start in range(0, len(ids) - step + 1, step):
        row = [tokenizer.bos_token_id, *ids[start : start + step]]
        with torch.no_grad():
            logits = precise(torch.tensor([row])).logits[0].double()
        for place in range(1, window):
            nats -= float(logits[place - 1].log_softmax(-1)[row[place]])
        num_bytes += len(tokenizer.decode(row[1:]).encode())
        count += step
    assert count > 10 * step
    assert found["num_tokens"] == count
    assert found["nats_per_token"] == pytest.approx(nats / count, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def test_short_documents_are_refused(tiny_model_folder: Path, tokenizer: Any) -> None:
    model = load_model(tiny_model_folder)
    with pytest.raises(ConfigError, match="no held-out document has 64 tokens"):
        held_out_loss(model, tokenizer, ["a"], window=64, num_tokens=64, batch_rows=1)
