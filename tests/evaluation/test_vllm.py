"""Another engine's answers in place of transformers', and the check that comes before.

vLLM itself needs a GPU: here an engine generates token by token, without batches and padding.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from longred.errors import ConfigError, PreflightError
from longred.evaluation.benchmarks import ask
from longred.evaluation.evaluate import evaluate
from longred.evaluation.examinee import examinee
from longred.evaluation.units import Unit, read_units
from longred.evaluation.vllm import EngineExaminee, by_engine, check_parity
from longred.models.load import load_model


class OneByOne:
    """Greedy decoding of one prompt after another.

    Args:
        shift: added to every token: an engine that is wrong.
    """

    def __init__(self, model: Any, tokenizer: Any, shift: int = 0) -> None:
        self.model, self.tokenizer, self.shift = model, tokenizer, shift
        self.num_asked = 0

    @torch.no_grad()
    def generate(
        self, rows: Sequence[Sequence[int]], *, max_tokens: int, stop: Sequence[str]
    ) -> list[list[int]]:
        self.num_asked += len(rows)
        return [self._one(list(row), max_tokens, stop) for row in rows]

    def _one(self, row: list[int], max_tokens: int, stop: Sequence[str]) -> list[int]:
        made: list[int] = []
        while len(made) < max_tokens:
            logits = self.model(torch.tensor([row + made])).logits[0, -1]
            made.append((int(logits.argmax()) + self.shift) % len(logits))
            text = self.tokenizer.decode(made)
            if made[-1] == self.tokenizer.eos_token_id or any(word in text for word in stop):
                break
        return made


@pytest.fixture(scope="module")
def unit(samples_folder: Path) -> Unit:
    found = [u for u in read_units(samples_folder) if u.metric == "recall"]
    return min(found, key=lambda unit: unit.max_tokens)


@pytest.fixture(scope="module")
def reference(tiny_model_folder: Path, tokenizer: Any, unit: Unit) -> Any:
    model = load_model(tiny_model_folder, attention="sdpa")
    return examinee(model, tokenizer, max_tokens=unit.max_tokens, batch_size=4)


def engine_of(reference: Any, tokenizer: Any, shift: int = 0) -> EngineExaminee:
    return by_engine(reference, OneByOne(reference.model, tokenizer, shift))


def test_an_engine_answers_as_transformers_does(reference: Any, tokenizer: Any, unit: Unit) -> None:
    other = engine_of(reference, tokenizer)
    assert ask(other, unit) == ask(reference, unit)
    assert other.engine.num_asked == unit.num_samples  # type: ignore[attr-defined]
    found = check_parity(reference, other, unit)
    assert found == {"same_share": 1.0, "points": 0.0, "num_samples": unit.num_samples}


def test_an_engine_that_answers_otherwise_is_refused(
    reference: Any, tokenizer: Any, unit: Unit
) -> None:
    with pytest.raises(PreflightError, match=r"evaluation\.backend: vllm gives 0 % of"):
        check_parity(reference, engine_of(reference, tokenizer, shift=1), unit)


def test_samples_that_are_drawn_are_refused(reference: Any, tokenizer: Any) -> None:
    other = engine_of(reference, tokenizer)
    with pytest.raises(ConfigError, match=r"evaluation\.backend: vllm answers greedily"):
        other._continued(
            torch.zeros(1, 1, dtype=torch.long),
            2,
            [],
            attention_mask=torch.ones(1, 1),
            do_sample=True,
        )


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_way_out_is_named(request_of: Any, config: Any, tmp_path: Path) -> None:
    from longred.store.artifacts import Store

    asked = request_of(config.model_copy(update={"backend": "vllm"}))
    for name in ("result", "work"):
        (tmp_path / name).mkdir()
    with pytest.raises(PreflightError, match=r"evaluation\.backend: vllm cannot be imported"):
        evaluate(asked, tmp_path / "result", tmp_path / "work", store=Store(tmp_path / "store"))
